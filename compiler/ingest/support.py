"""Which operators the compiler takes: one explicit table, and the check of a model against it.

TVM's importer dispatches on the operator's type alone and ignores its domain, so an operator of another
domain must be in this table by its full name before it may reach the importer.  ``import tvm`` takes
seconds, so the table is kept here and a test compares it with the importer's own.

    python -m sparsec.compiler.ingest.support > docs/onnx-ops.md
"""

import onnx_ir as ir

from sparsec.compiler.ingest import edit
from sparsec.compiler.ingest.errors import IngestError, quoted

IMPORTED = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpPool MatMul MatMulInteger Max MaxPool
    MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow
    QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Upsample Where Xor
""".split()
"""Standard operators that TVM's importer converts."""

OWN = {
    "GRU": "imported by sparsec",
    "LSTM": "imported by sparsec",
    "RNN": "imported by sparsec",
}
"""Standard operators that TVM's importer lacks and the compiler converts itself."""

EXPANDED = """
    Attention Bernoulli BlackmanWindow Celu CenterCropPad HammingWindow HannWindow NegativeLogLikelihoodLoss
    RMSNormalization RotaryEmbedding SoftmaxCrossEntropyLoss Swish
""".split()
"""Standard operators that ingest replaces by the function body of their definition."""

RESOLVED = {
    "ConcatFromSequence": "when the sequence is built from known tensors",
    "If": "when the condition is a constant",
    "Loop": "when the trip count is a constant and the copies of the body stay below 4000 nodes",
    "Scan": "when the copies of the body stay below 4000 nodes",
    "SequenceAt": "when the sequence is built from known tensors and the position is a constant",
    "SequenceConstruct": "when its users are resolved",
    "SequenceEmpty": "when its users are resolved",
    "SequenceErase": "when the sequence is built from known tensors and the position is a constant",
    "SequenceInsert": "when the sequence is built from known tensors and the position is a constant",
    "SequenceLength": "when the sequence is built from known tensors",
    "SplitToSequence": "when the split is a constant",
}
"""Operators that must be gone after ingest; what is left of them is refused."""

_DATA_DEPENDENT = "the shape of its output depends on data"
REFUSED = {
    "AllClassNMS": _DATA_DEPENDENT,
    "Compress": _DATA_DEPENDENT,
    "NonMaxSuppression": _DATA_DEPENDENT,
    "NonZero": _DATA_DEPENDENT,
    "Optional": "optional types are not supported",
    "OptionalGetElement": "optional types are not supported",
    "OptionalHasElement": "optional types are not supported",
    "Unique": _DATA_DEPENDENT,
    "MatMulInteger16": "not a standard operator, and ONNX Runtime has no CPU kernel to check it against",
}
"""What TVM's importer has a converter for, and why it is refused all the same."""

CONTRIB: dict[tuple[str, str], str] = {}

CONTRIB_REFUSED = {
    "BiasGelu": "com.microsoft",
    "EmbedLayerNormalization": "com.microsoft",
    "FastGelu": "com.microsoft",
    "SkipLayerNormalization": "com.microsoft",
}

SPARSEC_DOMAIN = "ai.sparsec"

DTYPES = frozenset(
    "FLOAT DOUBLE FLOAT16 BFLOAT16 BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
)


def handled(node: ir.Node) -> bool:
    """Whether something further down takes this operator, its attributes and dtypes left aside."""
    if node.domain:
        return node.domain == SPARSEC_DOMAIN or (node.domain, node.op_type) in CONTRIB
    return node.op_type in OWN or node.op_type in _IMPORTED


_IMPORTED = frozenset(IMPORTED)


def check(model: ir.Model) -> None:
    """Raise one ``IngestError`` that lists every node, input and value that cannot be compiled."""
    problems = []
    for value in model.graph.inputs:
        problems += _value_problem(value, f"input {quoted(value.name)}")
    for node in model.graph:
        where = f"{node.op_type} {quoted(node.name)} ({_domain(node)} opset {_opset(model, node)}, {_dtypes(node)})"
        if not handled(node):
            problems.append(f"{where}: {_why(node)}")
            continue
        for value in node.outputs:
            if value.name:
                problems += [
                    p.replace("\0", where) for p in _value_problem(value, f"\0 output {quoted(value.name)}")
                ]
    if problems:
        count = len(problems)
        raise IngestError(
            f"{count} thing{'s' if count > 1 else ''} in the model cannot be compiled: " + "; ".join(problems)
        )


def _value_problem(value: ir.Value, where: str) -> list[str]:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return [
            f"{where} is a {type(value.type).__name__.removesuffix('Type').lower()}, only tensors are supported"
        ]
    if value.dtype is None or not value.dtype:
        return [f"{where} has no element type, and none can be inferred"]
    if value.dtype.name not in DTYPES:
        return [f"{where} has element type {value.dtype.name}, which is not supported"]
    if edit.static_shape(value) is None:
        shape = "no shape" if value.shape is None else f"shape {value.shape}"
        return [f"{where} has {shape}, which cannot be computed from the input sizes"]
    return []


def _why(node: ir.Node) -> str:
    if node.domain:
        return "sparsec has no conversion for this operator; export the model with standard operators only"
    if node.op_type in RESOLVED:
        return f"supported only {RESOLVED[node.op_type]}"
    return REFUSED.get(node.op_type, "sparsec has no conversion for this operator")


def _domain(node: ir.Node) -> str:
    return node.domain or "ai.onnx"


def _opset(model: ir.Model, node: ir.Node) -> object:
    return model.graph.opset_imports.get(node.domain, "unknown")


def _dtypes(node: ir.Node) -> str:
    return (
        ", ".join(value.dtype.name if value is not None and value.dtype else "?" for value in node.inputs)
        or "no input"
    )
