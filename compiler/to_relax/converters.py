"""The table of our converters: operators that TVM lacks, or has slower or less exact than we do.

A converter takes ``(importer, node, inputs)``: the running import, the ONNX node, and its inputs as
Relax expressions (None where one is absent).  It returns the output expression (a Tuple for several),
or None to leave the node, with what it may have put into ``inputs``, to TVM's own converter.
"""

from sparsec.compiler.to_relax import (
    activations,
    linear,
    lookup,
    pointwise,
    pooling,
    recurrent,
    resize,
    rows,
    scan,
)

OURS = "ai.sparsec"

CONVERTERS = {
    ("", "MatMul"): linear.matmul,
    (OURS, "NMMatMul"): linear.matmul,
    ("", "Gemm"): linear.gemm,
    (OURS, "NMGemm"): linear.gemm,
    (OURS, "ConvNHWC"): linear.conv,
    (OURS, "ConvNWC"): linear.conv,
    (OURS, "ConvTransposeNHWC"): linear.conv_transpose,
    (OURS, "ConvTransposeNWC"): linear.conv_transpose,
    ("", "Transpose"): activations.transpose,
    ("", "Softmax"): rows.softmax,
    ("", "LogSoftmax"): rows.log_softmax,
    ("", "LayerNormalization"): rows.layer_normalization,
    (OURS, "Sparsemax"): rows.sparsemax,
    (OURS, "SoftThreshold"): pointwise.threshold,
    (OURS, "HardThreshold"): pointwise.threshold,
    (OURS, "ShiftedRelu"): pointwise.threshold,
    (OURS, "JumpRelu"): pointwise.threshold,
    (OURS, "ClippedSoftThreshold"): pointwise.threshold,
    (OURS, "ClippedShiftedRelu"): pointwise.threshold,
    ("", "Relu"): pointwise.relu,
    (OURS, "MaxPoolNHWC"): pooling.max_pool,
    (OURS, "MaxPoolNWC"): pooling.max_pool,
    (OURS, "AveragePoolNHWC"): pooling.average_pool,
    (OURS, "AveragePoolNWC"): pooling.average_pool,
    ("", "Gather"): lookup.gather,
    ("", "GatherElements"): lookup.elements,
    ("", "ScatterElements"): lookup.elements,
    ("", "RoiAlign"): lookup.batch_index,
    ("", "GatherND"): lookup.coordinates,
    ("", "ScatterND"): lookup.coordinates,
    ("", "Reshape"): pointwise.reshape,
    ("", "Squeeze"): pointwise.reshape,
    ("", "Unsqueeze"): pointwise.reshape,
    ("", "Flatten"): pointwise.reshape,
    ("", "Sign"): pointwise.sign,
    ("", "Slice"): lookup.slice_,
    ("", "Resize"): resize.resize,
    ("", "CumSum"): scan.cumsum,
    ("", "TopK"): scan.topk,
    ("", "ArgMax"): scan.arg_extremum,
    ("", "ArgMin"): scan.arg_extremum,
    ("", "IsNaN"): scan.is_nan,
    ("", "LSTM"): recurrent.lstm,
    ("", "GRU"): recurrent.gru,
    ("", "RNN"): recurrent.rnn,
}
