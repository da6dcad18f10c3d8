"""The table of standard operators: who takes what.

TVM's importer dispatches on the operator's type alone and ignores its domain and most of its limits.
``import tvm`` takes seconds, so the table is written out here and a test compares it with the importer's.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


IMPORTED = _words("""
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
""")
"""Converted by TVM's importer."""

OWN = _words("ConvInteger GRU LSTM RNN")
"""Converted by the compiler itself; TVM's importer lacks them."""

QUANTISED = _words("QLinearConv QLinearMatMul")
"""Replaced by operators on reals between QuantizeLinear and DequantizeLinear."""

EXPANDED = _words("""
    Attention BlackmanWindow Celu CenterCropPad HammingWindow HannWindow NegativeLogLikelihoodLoss
    RMSNormalization RotaryEmbedding SoftmaxCrossEntropyLoss Swish
""")
"""Replaced by the function body of their definition."""

_KNOWN_SEQUENCE = "when the sequence is built from known tensors"
_KNOWN_POSITION = _KNOWN_SEQUENCE + " and the position is a constant"
RESOLVED = {
    "ConcatFromSequence": _KNOWN_SEQUENCE,
    "If": "when the condition is a constant",
    "Loop": "when the trip count is a constant and the copies of its body have at most 4000 nodes",
    "Scan": "when the copies of its body have at most 4000 nodes",
    "SequenceAt": _KNOWN_POSITION,
    "SequenceConstruct": "when all that reads the sequence is resolved",
    "SequenceEmpty": "when all that reads the sequence is resolved",
    "SequenceErase": _KNOWN_POSITION,
    "SequenceInsert": _KNOWN_POSITION,
    "SequenceLength": _KNOWN_SEQUENCE,
    "SplitToSequence": "when the split is a constant",
}
"""Gone after ingest, or refused."""

_DATA_DEPENDENT = "the shape of its output depends on data"
_OPTIONAL = "optional types are not supported"
_CONTRIB = "an operator of another domain, replaced before the importer sees it or refused"
REFUSED = {
    "AllClassNMS": _DATA_DEPENDENT,
    "BiasGelu": _CONTRIB,
    "Compress": _DATA_DEPENDENT,
    "EmbedLayerNormalization": _CONTRIB,
    "FastGelu": _CONTRIB,
    "MatMulInteger16": _CONTRIB,
    "NonMaxSuppression": _DATA_DEPENDENT,
    "NonZero": _DATA_DEPENDENT,
    "Optional": _OPTIONAL,
    "OptionalGetElement": _OPTIONAL,
    "OptionalHasElement": _OPTIONAL,
    "SkipLayerNormalization": _CONTRIB,
    "Unique": _DATA_DEPENDENT,
}
"""What TVM's importer has a converter for, and why no such node may reach it."""

DTYPES = _words("FLOAT DOUBLE FLOAT16 BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64")
