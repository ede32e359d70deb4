"""What TensorRT's ONNX parser reads, by its own list; a graph is held against it on machines that have no TensorRT.

Source: docs/operators.md of onnx-tensorrt for TensorRT 10.15, the newest that we could read: opsets 9 to 24. The list
names operators with their tensor types; of its remarks only those on opsets are kept. UINT8 is for a graph's inputs and
outputs only.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

VERSION = "10.15"
OPSETS = range(9, 25)

_FLOATS = "FLOAT FLOAT16 BFLOAT16"
_HALVES = "FLOAT FLOAT16"
_NUMBERS = f"{_FLOATS} INT32 INT64"
_ALL = f"{_NUMBERS} BOOL"
_LIST = {
    "BOOL": "And Not Or Xor",
    _HALVES: "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign",
    "FLOAT": "STFT",
    _FLOATS: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh
        CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization
        HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log
        LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu ParametricSoftplus QuantizeLinear
        RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize
        RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
        ThresholdedRelu Upsample""",
    _NUMBERS: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul
        Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK""",
    _ALL: """Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape ReverseSequence
        Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""",
    f"{_ALL} UINT8": "Cast CastLike",
    f"{_ALL} FLOAT8E4M3FN FLOAT4E2M1 INT4": "Constant ConstantOfShape",
    f"{_FLOATS} INT8 FLOAT8E4M3FN": "Attention",
    f"{_FLOATS} INT32": "TensorScatter",
    f"{_NUMBERS} FLOAT8E4M3FN": "Mean",
    f"{_NUMBERS} INT8": "Gelu",
    "INT8 FLOAT8E4M3FN FLOAT4E2M1 INT4": "DequantizeLinear",
}
OPERATORS = {name: frozenset(types.split()) for types, names in _LIST.items() for name in names.split()}

# Inputs and outputs whose type is the operator's own and not the one that the list speaks of: indices, shapes, axes,
# conditions, answers to a comparison, the target of a cast. By position; None is every one.
_OWN_INPUTS = {
    "Expand": (1,), "Gather": (1,), "GatherElements": (1,), "GatherND": (1,), "OneHot": (0, 1), "Pad": (1, 3), "Reshape": (1,),
    "Resize": (1, 2, 3), "ScatterElements": (1,), "ScatterND": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,), "Where": (0,), "ConstantOfShape": (0,),
    "CumSum": (1,), "Dropout": (1, 2), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2),
    "RotaryEmbedding": (3,), "Attention": (3,), **{f"Reduce{kind}": (1,) for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip
_OWN_OUTPUTS = frozenset(
    [
        "ArgMax",
        "ArgMin",
        "DequantizeLinear",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "NonZero",
        "QuantizeLinear",
        "Shape",
        "Size",
        "TopK",
    ]
)


def problems(model: ir.Model) -> list[str]:
    """What the parser would not read, a sentence each; empty for a graph that fits the list."""
    opset = model.opset_imports.get("", 0)
    found = [] if opset in OPSETS else [f"opset {opset} is not one of {OPSETS[0]} to {OPSETS[-1]}"]
    for node in model.graph.all_nodes():
        types = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if types is None:
            found.append(f"operator {'::'.join(filter(None, (node.domain, node.op_type)))} ({node.name}) is not in it")
        else:
            wrong = sorted({str(dtype) for dtype in _types(node)} - types)
            found += [f"operator {node.op_type} ({node.name}) has no {dtype}" for dtype in wrong]
    return found


def _types(node: ir.Node) -> Iterator[ir.DataType]:
    """The types that the list speaks of. A value without one says nothing."""
    own = _OWN_INPUTS.get(node.op_type, ())
    values = [value for index, value in enumerate(node.inputs) if index not in own]
    if node.op_type not in _OWN_OUTPUTS:
        values += node.outputs
    for value in values:
        if value is not None and value.dtype is not None:
            yield value.dtype
