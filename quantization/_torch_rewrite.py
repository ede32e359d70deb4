"""Quantized weights and activations in a `.pt2` program, as calls of plain ATen operators.

A runtime then needs torch and nothing else, and no operator of torchao's own has to be let into a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ingot.runtimes.errors import ExportError

from . import _torch_numbers as numbers
from ._torch_archive import NUMBERS, Calls, Dim, Program, fixed, tensor, times
from ._torch_layers import Weight

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Product:
    """A matrix product of rounded activations and weights, a scale for each row of either.

    `most` is what the largest activation of a row becomes, divided by which it is the row's scale; `limits` clamp the rest.
    CUDA's products take rows and columns of weights by `multiple`.
    """

    dtype: torch.dtype
    most: float
    least_scale: float
    limits: tuple[float, float]
    multiple: int
    whole: bool


PRODUCTS = {
    # Int8DynamicActivationInt8WeightConfig of torchao, rows of 127.5 and its least scale
    "int8-dynamic": Product(torch.int8, 127.5, torch.finfo(torch.float32).eps, (-128, 127), 8, whole=True),
    # Float8DynamicActivationFloat8WeightConfig, PerRow; a row of zeros has no scale there
    "fp8": Product(torch.float8_e4m3fn, 448, 1e-12, (-448, 448), 16, whole=False),
}


def is_product(program: Program, weight: Weight, scheme: str) -> bool:
    """Whether the scheme rounds the activations of every layer with this weight too."""
    kind = PRODUCTS.get(scheme)
    if kind is None or any(size % kind.multiple for size in weight.tensor.shape[:2]):
        return False
    return all(_is_matrix(program, node) for node in program.nodes if node["name"] in weight.calls)


def _is_matrix(program: Program, node: Any) -> bool:
    """A linear layer on several rows for each sample, or a convolution that is one: 1x1, of every pixel.

    On one row a sample there is nothing to win, and CUDA takes no product of so few.
    """
    given = {one["name"]: one["arg"] for one in node["inputs"]}
    rank = len(program.values[given["weight"]["as_tensor"]["name"]]["sizes"])
    entering = program.values[given["input"]["as_tensor"]["name"]]["sizes"]
    if node["target"].endswith("linear.default"):
        return len(entering) > 2
    if not node["target"].endswith("conv2d.default") or rank != 4 or len(entering) != 4:
        return False
    kernel = program.values[given["weight"]["as_tensor"]["name"]]["sizes"][2:]
    plain = {"stride": {1}, "padding": {0}, "dilation": {1}}
    whole = all(set(given[name]["as_ints"]) == one for name, one in plain.items() if name in given)
    return kernel == fixed((1, 1)) and whole and given.get("groups", {"as_int": 1}) == {"as_int": 1}


def require_fitting(weights: Sequence[Weight], scheme: str) -> None:
    """Refuse weights that the scheme cannot hold: ExportError naming every layer with one."""
    extremes = {weight.name: torch.stack(torch.aminmax(weight.tensor)) for weight in weights}  # NaN if there is one
    broken = [name for name, ends in extremes.items() if not ends.isfinite().all()]
    if broken:
        raise ExportError(
            f"weights that are infinite or no number cannot be quantized: {', '.join(broken)}; is the model whole? `keep` "
            "leaves these layers as they are"
        )
    half = HALVES.get(scheme)
    wide = [name for name, ends in extremes.items() if half is not None and not ends.to(half).isfinite().all()]
    if half is not None and wide:
        other = "bf16 holds them, or " if scheme == "fp16" else ""
        raise ExportError(
            f"{scheme} holds numbers to {torch.finfo(half).max:g}, and weights are larger in {', '.join(wide)}: {other}`keep` "
            "leaves these layers as they are"
        )


def rewrite(program: Program, weight: Weight, scheme: str, group_size: int) -> None:
    """Put a scheme's form of a weight in place of it and, where it rounds activations, other calls in place of the layers."""
    if is_product(program, weight, scheme):
        _multiply(program, weight, scheme)
    else:
        _unpack(program, weight, scheme, group_size)


def _unpack(program: Program, weight: Weight, scheme: str, group_size: int) -> None:
    """The weight in floats again, by the name it had, right before it is first used."""
    array, sizes, wide = weight.tensor, fixed(weight.tensor.shape), weight.tensor.dtype
    program.drop(weight.value)
    calls = Calls(program, f"unpacked_{weight.value}")
    flat = array.reshape(len(array), -1)
    if scheme in HALVES:
        held = program.add(weight.parameter, array.to(HALVES[scheme]))
        calls.call("to.dtype", tensor(held), _dtype(wide), dtype=wide, sizes=sizes, name=weight.value)
    elif scheme == "int4-weights":
        _unpack_nibbles(program, calls, weight, group_size)
    else:
        made, scale = numbers.e4m3(flat) if scheme == "fp8" else numbers.int8(flat)
        held = program.add(f"{weight.parameter}_numbers", made.reshape(array.shape))
        scales = program.add(f"{weight.parameter}_scale", scale.reshape(-1, *[1] * (array.dim() - 1)))
        value = calls.call("to.dtype", tensor(held), _dtype(torch.float32), dtype=torch.float32, sizes=sizes)
        _scaled(calls, value, scales, sizes, wide, weight.value)
    first = next(place for place, node in enumerate(program.nodes) if node["name"] in weight.calls)
    program.nodes = [*program.nodes[:first], *calls.made, *program.nodes[first:]]


def _unpack_nibbles(program: Program, calls: Calls, weight: Weight, group_size: int) -> None:
    array = weight.tensor
    flat = array.reshape(len(array), -1)
    rows, columns = flat.shape
    group = next(size for size in range(min(group_size, columns), 0, -1) if columns % size == 0)
    made, scale = numbers.int4(flat, group)
    held = program.add(f"{weight.parameter}_nibbles", numbers.pack(made))
    scales = program.add(f"{weight.parameter}_scale", scale.reshape(rows, columns // group, 1))
    half, grouped = fixed((array.numel() // 2,)), fixed((rows, columns // group, group))
    low = calls.call("bitwise_and.Scalar", tensor(held), {"as_int": 15}, dtype=torch.uint8, sizes=half)
    high = calls.call("__rshift__.Scalar", tensor(held), {"as_int": 4}, dtype=torch.uint8, sizes=half)
    both = {"as_tensors": [{"name": low}, {"name": high}]}
    pairs = fixed((array.numel() // 2, 2))
    value = calls.call("stack.default", both, {"as_int": 1}, dtype=torch.uint8, sizes=pairs)
    value = calls.call("reshape.default", tensor(value), _shape(grouped), dtype=torch.uint8, sizes=grouped)
    value = calls.call("to.dtype", tensor(value), _dtype(torch.float32), dtype=torch.float32, sizes=grouped)
    value = calls.call("sub.Scalar", tensor(value), {"as_int": 8}, dtype=torch.float32, sizes=grouped)
    value = calls.call("mul.Tensor", tensor(value), tensor(scales), dtype=torch.float32, sizes=grouped)
    if array.dtype != torch.float32:
        value = calls.call("to.dtype", tensor(value), _dtype(array.dtype), dtype=array.dtype, sizes=grouped)
    sizes = fixed(array.shape)
    calls.call("reshape.default", tensor(value), _shape(sizes), dtype=array.dtype, sizes=sizes, name=weight.value)


def _scaled(calls: Calls, value: str, scales: str, sizes: list[Dim], wide: torch.dtype, name: str) -> None:
    last = name if wide == torch.float32 else ""
    value = calls.call("mul.Tensor", tensor(value), tensor(scales), dtype=torch.float32, sizes=sizes, name=last)
    if not last:
        calls.call("to.dtype", tensor(value), _dtype(wide), dtype=wide, sizes=sizes, name=name)


def _multiply(program: Program, weight: Weight, scheme: str) -> None:
    """Layers as products of rounded rows, which torchao makes of linear layers."""
    kind, flat = PRODUCTS[scheme], weight.tensor.reshape(len(weight.tensor), -1)
    made, scale = numbers.int8(flat) if kind.whole else numbers.e4m3(flat)
    program.drop(weight.value)
    held = (
        program.add(f"{weight.parameter}_numbers", made),
        program.add(f"{weight.parameter}_scale", scale.reshape(1, -1)),
    )
    nodes = []
    for node in program.nodes:
        if node["name"] in weight.calls:
            calls = Calls(program, f"product_{node['name']}")
            _layer(program, calls, node, held, kind)
            nodes += calls.made
        else:
            nodes.append(node)
    program.nodes = nodes


def _layer(program: Program, calls: Calls, node: Any, held: tuple[str, str], kind: Product) -> None:
    given = {one["name"]: one["arg"] for one in node["inputs"]}
    entering, output = given["input"]["as_tensor"]["name"], node["outputs"][0]["as_tensor"]["name"]
    wide = next(dtype for dtype, number in NUMBERS.items() if number == program.values[entering]["dtype"])
    sizes = program.values[entering]["sizes"]
    swapped = node["target"].endswith("conv2d.default")
    if swapped:
        sizes = [sizes[0], sizes[2], sizes[3], sizes[1]]
        entering = calls.call("permute.default", tensor(entering), _axes(0, 2, 3, 1), dtype=wide, sizes=sizes)
    leading = [calls.size(entering, axis) for axis in range(len(sizes) - 1)]
    rows, columns = times(sizes[:-1]), sizes[-1]
    many = program.values[held[0]]["sizes"][0]
    flat = calls.call(
        "reshape.default", tensor(entering), _axes(-1, columns["as_int"]), dtype=wide, sizes=[rows, columns]
    )
    found = _product(calls, flat, [rows, columns], many, held, kind, wide)
    if given.get("bias", {"as_none": True}).get("as_tensor"):
        found = calls.call("add.Tensor", tensor(found), given["bias"], dtype=wide, sizes=[rows, many])
    shape = {"as_sym_ints": [*leading, many]} if any("as_name" in dim for dim in leading) else _shape([*leading, many])
    ended = [*sizes[:-1], many]
    name = "" if swapped else output
    found = calls.call("reshape.default", tensor(found), shape, dtype=wide, sizes=ended, name=name)
    if swapped:
        back = [ended[0], ended[3], ended[1], ended[2]]
        found = calls.call("permute.default", tensor(found), _axes(0, 3, 1, 2), dtype=wide, sizes=back)
        calls.call("contiguous.default", tensor(found), dtype=wide, sizes=back, name=output)


def _product(
    calls: Calls, flat: str, sizes: list[Dim], many: Dim, held: tuple[str, str], kind: Product, wide: torch.dtype
) -> str:
    """scale = max(max |x| / most, least);  y = round(x / scale) W^T * scale * W's scales, each row by itself."""
    full = torch.float32
    rows, columns = sizes
    one = [rows, {"as_int": 1}]
    if wide != full:
        flat = calls.call("to.dtype", tensor(flat), _dtype(full), dtype=full, sizes=sizes)
    value = calls.call("abs.default", tensor(flat), dtype=full, sizes=sizes)
    value = calls.call("amax.default", tensor(value), _axes(-1), {"as_bool": True}, dtype=full, sizes=one)
    value = calls.call("div.Scalar", tensor(value), {"as_float": float(kind.most)}, dtype=full, sizes=one)
    scale = calls.call("clamp_min.default", tensor(value), {"as_float": kind.least_scale}, dtype=full, sizes=one)
    if kind.whole:  # torchao multiplies by the inverse for integers, and divides for floats
        value = calls.call("reciprocal.default", tensor(scale), dtype=full, sizes=one)
        value = calls.call("mul.Tensor", tensor(flat), tensor(value), dtype=full, sizes=sizes)
        value = calls.call("round.default", tensor(value), dtype=full, sizes=sizes)
    else:
        value = calls.call("div.Tensor", tensor(flat), tensor(scale), dtype=full, sizes=sizes)
    low, high = ({"as_float": float(limit)} for limit in kind.limits)
    value = calls.call("clamp.default", tensor(value), low, high, dtype=full, sizes=sizes)
    value = calls.call("to.dtype", tensor(value), _dtype(kind.dtype), dtype=kind.dtype, sizes=sizes)
    turned = calls.call("t.default", tensor(held[0]), dtype=kind.dtype, sizes=[columns, many])
    ended = [rows, many]
    if kind.whole:
        value = calls.call("_int_mm.default", tensor(value), tensor(turned), dtype=torch.int32, sizes=ended)
        value = calls.call("to.dtype", tensor(value), _dtype(full), dtype=full, sizes=ended)
        value = calls.call("mul.Tensor", tensor(value), tensor(scale), dtype=full, sizes=ended)
        value = calls.call("mul.Tensor", tensor(value), tensor(held[1]), dtype=full, sizes=ended)
        half = full
    else:  # with a scale for each row CUDA answers in bfloat16 only
        half, nothing = torch.bfloat16, {"as_none": True}
        value = calls.call(
            "_scaled_mm.default", tensor(value), tensor(turned), tensor(scale), tensor(held[1]), nothing, nothing,
            _dtype(half), dtype=half, sizes=ended,
        )  # fmt: skip
    return value if half == wide else calls.call("to.dtype", tensor(value), _dtype(wide), dtype=wide, sizes=ended)


def _dtype(dtype: torch.dtype) -> Any:
    return {"as_scalar_type": NUMBERS[dtype]}


def _shape(sizes: list[Dim]) -> Any:
    return {"as_ints": [size["as_int"] for size in sizes]}


def _axes(*axes: int) -> Any:
    return {"as_ints": list(axes)}
