"""One case or more for every MIL operation that the evaluator knows: how to build it, on what, and what NumPy answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own name for it
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf, expit, logsumexp
from scipy.special import softmax as scipy_softmax

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


class Case(NamedTuple):
    """`build` makes the operation from MIL values, `expect` its result from the arrays."""

    build: Callable[..., Any]
    inputs: tuple[Array, ...]
    expect: Callable[..., Any]


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return RNG.uniform(0.1, 0.9, shape).astype(np.float32)


def whole(*shape: int) -> Array:
    return RNG.integers(-9, 9, shape).astype(np.int32)


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


X, PICTURE, MATRIX = normal(2, 3, 4), normal(2, 4, 6, 5), normal(3, 4)
ROW = ints(3, -1, 0)


def number(value: Any) -> Any:
    """Core ML gives no truth values away."""
    return mb.cast(x=value, dtype="fp32")


def unary(op: str, array: Array, expect: Callable[..., Any]) -> Case:
    return Case(lambda x: getattr(mb, op)(x=x), (array,), expect)


def binary(op: str, expect: Callable[..., Any], a: Array = X, b: Array = MATRIX) -> Case:
    return Case(lambda x, y: getattr(mb, op)(x=x, y=y), (a, b), expect)


def compare(op: str, expect: Callable[..., Any]) -> Case:
    return Case(lambda x, y: number(getattr(mb, op)(x=x, y=y)), (whole(2, 3, 4), whole(3, 4)), expect)


def logic(op: str, expect: Callable[..., Any]) -> Case:
    def build(x: Any, y: Any) -> Any:
        return number(getattr(mb, op)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool")))

    truths = ints(0, 0, 1, 1), ints(0, 1, 0, 1)
    return Case(build, truths, lambda x, y: expect(x != 0, y != 0))


def reduction(op: str, expect: Callable[..., Any], array: Array = X) -> dict[str, Case]:
    kinds: dict[str, dict[str, Any]] = {"": {}, " axes": {"axes": [0, -1]}, " kept": {"axes": [1], "keep_dims": True}}
    return {
        op + kind: Case(
            lambda x, options=options: getattr(mb, op)(x=x, **options),
            (array,),
            lambda x, options=options: expect(
                x, axis=tuple(options.get("axes", range(x.ndim))), keepdims=options.get("keep_dims", False)
            ),
        )
        for kind, options in kinds.items()
    }


ELEMENTWISE = {
    "abs": unary("abs", X, np.abs),
    "acos": unary("acos", positive(5), np.arccos),
    "asin": unary("asin", positive(5), np.arcsin),
    "atan": unary("atan", X, np.arctan),
    "atanh": unary("atanh", positive(5), np.arctanh),
    "ceil": unary("ceil", X, np.ceil),
    "cos": unary("cos", X, np.cos),
    "cosh": unary("cosh", X, np.cosh),
    "erf": unary("erf", X, erf),
    "exp": unary("exp", X, np.exp),
    "exp2": unary("exp2", X, np.exp2),
    "floor": unary("floor", X, np.floor),
    "identity": unary("identity", X, lambda x: x),
    "round": unary("round", np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 1.2], np.float32), np.round),
    "sign": unary("sign", whole(7).astype(np.float32), np.sign),
    "sin": unary("sin", X, np.sin),
    "sinh": unary("sinh", X, np.sinh),
    "sqrt": unary("sqrt", positive(5), np.sqrt),
    "square": unary("square", X, np.square),
    "tan": unary("tan", positive(5), np.tan),
    "tanh": unary("tanh", X, np.tanh),
    "inverse": unary("inverse", positive(5), lambda x: 1 / (x + 1e-4)),
    "log": unary("log", positive(5), np.log),
    "log epsilon": Case(lambda x: mb.log(x=x, epsilon=0.5), (positive(5),), lambda x: np.log(x + 0.5)),
    "rsqrt": unary("rsqrt", positive(5), lambda x: 1 / np.sqrt(x + 1e-12)),
    "rsqrt epsilon": Case(lambda x: mb.rsqrt(x=x, epsilon=0.5), (positive(5),), lambda x: 1 / np.sqrt(x + 0.5)),
    "clip": Case(lambda x: mb.clip(x=x, alpha=-0.5, beta=0.25), (X,), lambda x: np.clip(x, -0.5, 0.25)),
    "threshold": Case(lambda x: mb.threshold(x=x, alpha=0.2), (X,), lambda x: np.maximum(x, 0.2)),
    "add": binary("add", np.add),
    "sub": binary("sub", np.subtract),
    "mul": binary("mul", np.multiply),
    "maximum": binary("maximum", np.maximum),
    "minimum": binary("minimum", np.minimum),
    "pow": binary("pow", np.power, positive(2, 3, 4)),
    "real_div": binary("real_div", np.divide, b=positive(3, 4)),
    "real_div int": binary("real_div", lambda x, y: np.trunc(x / y), ints(8, -8, 9), ints(2, 2, 3)),
    "floor_div": binary("floor_div", np.floor_divide, ints(7, -7, 8), ints(2, 2, -3)),
    "mod": binary("mod", np.mod, ints(7, -7, 8), ints(3, 3, -3)),
    "equal": compare("equal", np.equal),
    "not_equal": compare("not_equal", np.not_equal),
    "greater": compare("greater", np.greater),
    "greater_equal": compare("greater_equal", np.greater_equal),
    "less": compare("less", np.less),
    "less_equal": compare("less_equal", np.less_equal),
    "logical_and": logic("logical_and", np.logical_and),
    "logical_or": logic("logical_or", np.logical_or),
    "logical_xor": logic("logical_xor", np.logical_xor),
    "logical_not": Case(
        lambda x: number(mb.logical_not(x=mb.cast(x=x, dtype="bool"))), (ints(0, 1),), lambda x: x == 0
    ),
    "cast to int": Case(lambda x: mb.cast(x=x, dtype="int32"), (X * 3,), np.trunc),
    "cast to bool": Case(lambda x: number(mb.cast(x=x, dtype="bool")), (ROW,), lambda x: x != 0),
    "select": Case(
        lambda c, a, b: mb.select(cond=mb.greater(x=c, y=0.0), a=a, b=b),
        (X, normal(2, 3, 4), normal(2, 3, 4)),
        lambda c, a, b: np.where(c > 0, a, b),
    ),
}

TENTHS = np.arange(-30, 31, dtype=np.float32) / 10
ACTIVATIONS = {
    "relu": unary("relu", X, lambda x: np.maximum(x, 0)),
    "relu6": unary("relu6", X * 5, lambda x: np.clip(x, 0, 6)),
    "sigmoid": unary("sigmoid", X, expit),
    "silu": unary("silu", X, lambda x: x * expit(x)),
    "softplus": unary("softplus", X * 30, lambda x: np.logaddexp(0, x)),
    "softsign": unary("softsign", X, lambda x: x / (1 + np.abs(x))),
    "gelu": unary("gelu", TENTHS, lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
    "gelu tanh": Case(
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        (TENTHS,),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "gelu sigmoid": Case(
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), (TENTHS,), lambda x: x * expit(1.702 * x)
    ),
    "softmax": unary("softmax", X, lambda x: scipy_softmax(x, -1)),
    "softmax axis": Case(lambda x: mb.softmax(x=x, axis=1), (X,), lambda x: scipy_softmax(x, 1)),
    "leaky_relu": Case(lambda x: mb.leaky_relu(x=x, alpha=0.1), (X,), lambda x: np.where(x >= 0, x, 0.1 * x)),
    "elu": Case(lambda x: mb.elu(x=x, alpha=0.7), (X,), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    "clamped_relu": Case(
        lambda x: mb.clamped_relu(x=x, alpha=0.3, beta=0.5),
        (X,),
        lambda x: np.minimum(np.where(x >= 0, x, 0.3 * x), 0.5),
    ),
    "linear_activation": Case(lambda x: mb.linear_activation(x=x, alpha=3.0, beta=0.5), (X,), lambda x: 3 * x + 0.5),
    "prelu": Case(
        lambda x: mb.prelu(x=x, alpha=np.float32([0.1, 0.2, 0.3, 0.4])),
        (PICTURE,),
        lambda x: np.where(x > 0, x, x * np.float32([0.1, 0.2, 0.3, 0.4])[:, None, None]),
    ),
    "scaled_tanh": Case(lambda x: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5), (X,), lambda x: 2 * np.tanh(x / 2)),
    "sigmoid_hard": Case(
        lambda x: mb.sigmoid_hard(x=x, alpha=0.4, beta=0.6), (X,), lambda x: np.clip(0.4 * x + 0.6, 0, 1)
    ),
    "softplus_parametric": Case(
        lambda x: mb.softplus_parametric(x=x, alpha=np.float32([1, 2, 3, 4]), beta=np.float32([4, 3, 2, 1])),
        (PICTURE,),
        lambda x: (
            np.float32([1, 2, 3, 4])[:, None, None] * np.logaddexp(0, x * np.float32([4, 3, 2, 1])[:, None, None])
        ),
    ),
    "thresholded_relu": Case(lambda x: mb.thresholded_relu(x=x, alpha=0.5), (X,), lambda x: np.where(x >= 0.5, x, 0)),
}


REDUCTIONS = {
    **reduction("reduce_l1_norm", lambda x, **where: np.sum(np.abs(x), **where)),
    **reduction("reduce_l2_norm", lambda x, **where: np.sqrt(np.sum(x**2, **where))),
    **reduction("reduce_log_sum", lambda x, **where: np.log(np.sum(x, **where)), positive(2, 3, 4)),
    **reduction("reduce_log_sum_exp", logsumexp),
    **reduction("reduce_max", np.max),
    **reduction("reduce_mean", np.mean),
    **reduction("reduce_min", np.min),
    **reduction("reduce_prod", np.prod),
    **reduction("reduce_sum", np.sum),
    **reduction("reduce_sum_square", lambda x, **where: np.sum(x**2, **where)),
    "reduce_argmax": Case(lambda x: mb.reduce_argmax(x=x), (X,), lambda x: np.argmax(x, -1)),
    "reduce_argmin": Case(
        lambda x: mb.reduce_argmin(x=x, axis=1, keep_dims=True), (X,), lambda x: np.argmin(x, 1, keepdims=True)
    ),
}


def attention(q: Array, k: Array, v: Array, mask: Any = 0.0) -> Array:
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1]) + mask
    found: Array = scipy_softmax(scores, -1) @ v
    return found


WEIGHT, BIAS = normal(5, 4), normal(5)
MASK = np.where(RNG.random((7, 6)) < 0.3, -np.inf, 0).astype(np.float32)
LINEAR = {
    "linear": Case(lambda x: mb.linear(x=x, weight=WEIGHT, bias=BIAS), (X,), lambda x: x @ WEIGHT.T + BIAS),
    "matmul": binary("matmul", np.matmul, normal(2, 3, 4), normal(4, 5)),
    "matmul transposed": Case(
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        (normal(2, 4, 3), normal(5, 4)),
        lambda x, y: np.swapaxes(x, -1, -2) @ y.T,
    ),
    "einsum": Case(
        lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        (normal(2, 3, 4, 5), normal(2, 5, 4, 6)),
        lambda x, y: np.einsum("nchw,nwhu->nchu", x, y),
    ),
    "scaled_dot_product_attention": Case(
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        (normal(2, 3, 7, 4), normal(2, 3, 6, 4), normal(2, 3, 6, 5)),
        attention,
    ),
    "scaled_dot_product_attention mask": Case(
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK),
        (normal(2, 3, 7, 4), normal(2, 3, 6, 4), normal(2, 3, 6, 5)),
        lambda q, k, v: attention(q, k, v, MASK),
    ),
    "scaled_dot_product_attention bool": Case(
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mb.equal(x=m, y=0.0)),
        (normal(2, 7, 4), normal(2, 6, 4), normal(2, 6, 5), np.isinf(MASK).astype(np.float32)),
        lambda q, k, v, _: attention(q, k, v, MASK),
    ),
}

MEAN, VARIANCE, GAMMA, BETA = normal(4), positive(4), normal(4), normal(4)


def standardized(x: Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Array:
    found: Array = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return found


def per_channel(values: Array) -> Array:
    return values[:, None, None]


NORMALIZATIONS = {
    "batch_norm": Case(
        lambda x: mb.batch_norm(x=x, mean=MEAN, variance=VARIANCE, gamma=GAMMA, beta=BETA, epsilon=1e-3),
        (PICTURE,),
        lambda x: (
            (x - per_channel(MEAN)) / np.sqrt(per_channel(VARIANCE) + 1e-3) * per_channel(GAMMA) + per_channel(BETA)
        ),
    ),
    "instance_norm": Case(
        lambda x: mb.instance_norm(x=x, gamma=GAMMA, beta=BETA, epsilon=1e-4),
        (PICTURE,),
        lambda x: standardized(x, (2, 3), 1e-4) * per_channel(GAMMA) + per_channel(BETA),
    ),
    "layer_norm": Case(
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA, beta=BETA, epsilon=1e-3),
        (X,),
        lambda x: standardized(x, (-1,), 1e-3) * GAMMA + BETA,
    ),
    "layer_norm channels": Case(
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=GAMMA, beta=BETA),
        (PICTURE,),
        lambda x: standardized(x, (1,)) * per_channel(GAMMA) + per_channel(BETA),
    ),
    "layer_norm all": Case(lambda x: mb.layer_norm(x=x, axes=[0, 1, 2]), (X,), lambda x: standardized(x, (0, 1, 2))),
    "l2_norm": Case(
        lambda x: mb.l2_norm(x=x, epsilon=1e-3),
        (PICTURE,),
        lambda x: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-3),
    ),
    "local_response_norm": Case(
        lambda x: mb.local_response_norm(x=x, size=3, alpha=0.3, beta=0.5, k=2.0),
        (PICTURE,),
        lambda x: (
            x / np.sqrt(2 + 0.1 * sliding_window_view(np.pad(x**2, [(0, 0), (1, 1), (0, 0), (0, 0)]), 3, 1).sum(-1))
        ),
    ),
}
