"""Cases of the operations that move numbers about: reshapes, slices, gathers, scatters, sorts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it

from .mil_cases import PICTURE, Array, Case, X, ints, normal, positive, whole

Y = normal(2, 3, 4)


def op(name: str, expect: Callable[..., Any], *inputs: Array, **options: Any) -> Case:
    """An operation whose first input is called x."""
    return Case(lambda x: getattr(mb, name)(x=x, **options), inputs or (X,), expect)


def window(x: Array) -> Array:
    return np.stack([x[:, 0:2], x[:, 1:3]], 1)


def blocks(x: Array) -> Array:
    """TensorFlow's space_to_depth by its definition, pixel by pixel."""
    return np.concatenate([x[:, :, i::2, j::2] for i in range(2) for j in range(2)], 1)


EVEN = normal(2, 8, 4, 6)
RESHAPING = {
    "reshape": op("reshape", lambda x: x.reshape(6, 4), shape=[6, 4]),
    "reshape -1": op("reshape", lambda x: x.reshape(4, 6), shape=[4, -1]),
    "reshape 0": op("reshape", lambda x: x.reshape(1, 2, 3, 4), shape=[1, -1, 0, 0]),
    "reshape_like": Case(
        lambda x, y: mb.reshape_like(x=x, ref_tensors=(y, y), begins=(0, 1), ends=(1, 0), end_masks=(False, True)),
        (normal(24), X),
        lambda x, _: x.reshape(2, 3, 4),
    ),
    "expand_dims": op("expand_dims", lambda x: x[:, None, :, :, None], axes=[1, -1]),
    "squeeze": op("squeeze", lambda x: x[:, 0], normal(2, 1, 3, 1), axes=[1, 0]),
    "squeeze all": op("squeeze", np.squeeze, normal(2, 1, 3, 1)),
    "flatten2d": op("flatten2d", lambda x: x.reshape(6, 4), axis=-1),
    "transpose": op("transpose", lambda x: x.transpose(2, 0, 1), perm=[-1, 0, 1]),
    "reverse": op("reverse", lambda x: x[::-1, :, ::-1], axes=[0, -1]),
    "reverse all": op("reverse", np.flip),
    "reverse_sequence": op(
        "reverse_sequence", lambda x: np.stack([x[0, [1, 0, 2]], x[1, ::-1]]), lengths=[2, 3], seq_axis=1, batch_axis=0
    ),
    "concat": Case(lambda x, y: mb.concat(values=(x, y), axis=-1), (X, Y), lambda x, y: np.concatenate([x, y], -1)),
    "concat interleave": Case(
        lambda x, y: mb.concat(values=(x, y), axis=1, interleave=True),
        (X, Y),
        lambda x, y: np.stack([x, y], 2).reshape(2, 6, 4),
    ),
    "stack": Case(lambda x, y: mb.stack(values=(x, y), axis=-1), (X, Y), lambda x, y: np.stack([x, y], -1)),
    "split sizes": Case(lambda x: mb.split(x=x, split_sizes=[1, 3], axis=2)[1], (X,), lambda x: x[..., 1:]),
    "split number": Case(lambda x: mb.split(x=x, num_splits=2, axis=-1)[1], (X,), lambda x: x[..., 2:]),
    "tile": op("tile", lambda x: np.tile(x, (1, 2, 3)), reps=[1, 2, 3]),
    "sliding_windows": op("sliding_windows", window, axis=-2, size=2),
    "pad": op("pad", lambda x: np.pad(x, [(0, 0), (1, 0), (2, 3)], constant_values=7), pad=[1, 0, 2, 3], constant_val=7.0),
    "pad reflect": op("pad", lambda x: np.pad(x, [(0, 0), (1, 2), (3, 0)], "reflect"), pad=[1, 2, 3, 0], mode="reflect"),
    "pad replicate": op("pad", lambda x: np.pad(x, [(0, 0), (1, 2), (3, 0)], "edge"), pad=[1, 2, 3, 0], mode="replicate"),
    "crop": op("crop", lambda x: x[:, :, 1:-2, 2:], PICTURE, crop_height=[1, 2], crop_width=[2, 0]),
    "space_to_depth": op("space_to_depth", blocks, EVEN, block_size=2),
    "depth_to_space": Case(
        lambda x: mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2), (EVEN,), lambda x: x
    ),
    "pixel_shuffle": op(
        "pixel_shuffle",
        lambda x: x.reshape(2, 2, 2, 2, 4, 6).transpose(0, 1, 4, 2, 5, 3).reshape(2, 2, 8, 12),
        EVEN,
        upscale_factor=2,
    ),
    "pixel_unshuffle": Case(
        lambda x: mb.pixel_unshuffle(x=mb.pixel_shuffle(x=x, upscale_factor=2), downscale_factor=np.uint32(2)),
        (EVEN,),
        lambda x: x,
    ),
    "space_to_batch": op(
        "space_to_batch",
        lambda x: np.concatenate([np.pad(x, [(0, 0), (0, 0), (0, 0), (1, 1)])[:, :, i::2, j::2] for i in range(2) for j in range(2)]),
        EVEN,
        block_shape=[2, 2],
        paddings=[[0, 0], [1, 1]],
    ),
    "batch_to_space": Case(
        lambda x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[2, 2], paddings=[[1, 1], [0, 0]]),
            block_shape=[2, 2],
            crops=[[1, 1], [0, 0]],
        ),
        (EVEN,),
        lambda x: x,
    ),
}  # fmt: skip

MAKING = {
    "shape": op("shape", lambda x: x.shape),
    "fill": Case(
        lambda x: mb.add(x=x, y=mb.fill(shape=mb.shape(x=x), value=2.5)), (X,), lambda x: x + 2.5
    ),
    "fill_like": Case(lambda x: mb.fill_like(ref_tensor=x, value=3.0), (X,), lambda x: np.full_like(x, 3)),
    "range_1d": Case(
        lambda x: mb.range_1d(start=1, end=mb.squeeze(x=mb.slice_by_size(x=mb.shape(x=x), begin=[2], size=[1])), step=2),
        (X,),
        lambda _: [1, 3],
    ),
    "one_hot": Case(
        lambda x: mb.one_hot(indices=x, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=0.5),
        (ints(3, 1, 0),),
        lambda x: np.where(np.arange(4)[:, None] == x, 2.0, 0.5),
    ),
    "band_part upper": op("band_part", np.triu, lower=0, upper=-1),
    "band_part band": op("band_part", lambda x: np.tril(np.triu(x, -1), 1), lower=1, upper=1),
    "cumsum": op("cumsum", lambda x: np.cumsum(x, 1), axis=1),
    "cumsum exclusive": op(
        "cumsum", lambda x: np.cumsum(x, 1) - x, axis=1, exclusive=True
    ),
    "cumsum reverse": op("cumsum", lambda x: np.cumsum(x[..., ::-1], -1)[..., ::-1], axis=-1, reverse=True),
    "non_zero": op("non_zero", np.argwhere, ints(0, 3, 0, -1).astype(np.float32)),
    "argsort": op("argsort", lambda x: np.argsort(-x, -1)),
    "argsort ascending": op("argsort", lambda x: np.argsort(x, 1), axis=1, ascending=True),
    "topk values": Case(lambda x: mb.topk(x=x, k=2, axis=1)[0], (X,), lambda x: -np.sort(-x, 1)[:, :2]),
    "topk places": Case(lambda x: mb.topk(x=x, k=2, ascending=True)[1], (X,), lambda x: np.argsort(x, -1)[..., :2]),
}  # fmt: skip


def put(how: Callable[..., Any], place: Callable[[Array], Any]) -> Callable[..., Array]:
    """What NumPy's `ufunc.at` leaves of an array."""

    def expect(data: Array, *rest: Array) -> Array:
        out = data.copy()
        how(out, place(rest[0]), rest[-1])
        return out

    return expect


def scatter(mode: str, how: Callable[..., Any]) -> Case:
    return Case(
        lambda data, i, new: mb.scatter(data=data, indices=i, updates=new, axis=1, mode=mode),
        (positive(2, 4, 3), ints(3, 0, -1), positive(2, 3, 3)),
        put(how, lambda i: (slice(None), i)),
    )


MODES: dict[str, Callable[..., Any]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}
BATCH, NOWHERE = whole(2, 5) % 3, ints([0, 2], [1, -1], [0, 0])
INDEXING = {
    "slice_by_index": op(
        "slice_by_index", lambda x: x[:, 2:0:-1, -3:-1],
        begin=[1, 2, -3], end=[1, 0, -1], stride=[1, -1, 1], begin_mask=[True, False, False], end_mask=[True, False, False],
    ),
    "slice_by_index squeezed": op(
        "slice_by_index", lambda x: x[-1, ::2, 0],
        begin=[-1, 0, 0], end=[0, 2**31 - 1, 0], stride=[1, 2, 1], squeeze_mask=[True, False, True],
    ),
    "slice_by_size": op("slice_by_size", lambda x: x[:, 1:3, -2:], begin=[0, 1, -2], size=[-1, 2, 2]),
    "slice_update": Case(
        lambda x, y: mb.slice_update(x=x, update=y, begin=[0, 1, 0], end=[2, 3, 4], stride=[1, 1, 2]),
        (X, normal(2, 2, 2)),
        lambda x, y: np.concatenate([x[:, :1], np.stack([y, x[:, 1:, 1::2]], -1).reshape(2, 2, 4)], 1),
    ),
    "gather": Case(lambda x, i: mb.gather(x=x, indices=i, axis=-1), (X, ints([3, -1], [0, 2])), lambda x, i: x[..., i]),
    "gather single": Case(lambda x: mb.gather(x=x, indices=np.int32(2), axis=1), (X,), lambda x: x[:, 2]),
    "gather number": Case(lambda x: mb.gather(x=mb.shape(x=x), indices=np.int32(-1)), (X,), lambda x: x.shape[-1]),
    "gather batch": Case(
        lambda x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1), (X, BATCH), lambda x, i: x[np.arange(2)[:, None], i]
    ),
    "gather batch later axis": Case(
        lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
        (X, BATCH),
        lambda x, i: np.stack([x[n][:, i[n]] for n in range(2)]),
    ),
    "gather_along_axis": Case(
        lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        (X, whole(2, 5, 4) % 3 - 2),
        lambda x, i: np.take_along_axis(x, i, 1),
    ),
    "gather_nd": Case(
        lambda x, i: mb.gather_nd(x=x, indices=i), (X, NOWHERE), lambda x, i: x[i[:, 0], i[:, 1]]
    ),
    "gather_nd batch": Case(
        lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        (X, ints([[0, 1], [2, 3]], [[1, 1], [2, 0]])),
        lambda x, i: np.stack([x[n][i[n][:, 0], i[n][:, 1]] for n in range(2)]),
    ),
    **{f"scatter {mode}": scatter(mode, how) for mode, how in MODES.items()},
    "scatter update": Case(
        lambda data, i, new: mb.scatter(data=data, indices=i, updates=new, axis=0, mode="update"),
        (normal(4, 3), ints(2, 0), normal(2, 3)),
        lambda data, _, new: np.stack([new[1], data[1], new[0], data[3]]),
    ),
    "scatter_along_axis": Case(
        lambda data, i, new: mb.scatter_along_axis(data=data, indices=i, updates=new, axis=1, mode="add"),
        (normal(2, 4), ints([1, 1, -1], [0, 2, 0]), normal(2, 3)),
        put(np.add.at, lambda i: (np.arange(2)[:, None], i)),
    ),
    "scatter_nd": Case(
        lambda data, i, new: mb.scatter_nd(data=data, indices=i, updates=new, mode="add"),
        (X, NOWHERE, normal(3, 4)),
        put(np.add.at, lambda i: (i[:, 0], i[:, 1])),
    ),
}  # fmt: skip
