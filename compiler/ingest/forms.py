"""Forms of imported operators that TVM's importer gets wrong or does not know, and that are refused."""

import onnx_ir as ir

from sparsec.compiler.ingest import edit


def _used(node: ir.Node, index: int) -> bool:
    value = node.outputs[index] if len(node.outputs) > index else None
    return value is not None and bool(value.uses() or value.is_graph_output())


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def _is(node: ir.Node, *dtypes: str) -> bool:
    return bool(node.inputs[0].dtype) and node.inputs[0].dtype.name in dtypes


def _recurrent(node: ir.Node) -> bool:
    """Whether a recurrent layer goes beyond the defaults that the kernels compute."""
    given = [value is not None for value in node.inputs] + [False] * 8
    if edit.integer(node, "input_forget", 0) or given[7] or not _whole_sequences(node):
        return True
    names = (
        [n.lower() for n in node.attributes["activations"].as_strings()]
        if "activations" in node.attributes
        else []
    )
    expected = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[
        node.op_type
    ]
    return any(names[i : i + len(expected)] != expected for i in range(0, len(names), len(expected)))


def _whole_sequences(node: ir.Node) -> bool:
    """Whether sequence_lens is absent, or constant and the full length everywhere."""
    lengths = node.inputs[4] if len(node.inputs) > 4 else None
    if lengths is None:
        return True
    shape, values = edit.static_shape(node.inputs[0]), edit.constant(lengths)
    steps = shape[1 if edit.integer(node, "layout", 0) else 0] if shape else None
    return values is not None and all(int(v) == steps for v in values.reshape(-1))


_RECURRENT = "peepholes, input_forget, sequences of unequal length, or other activations than the default"
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")

FORMS = (
    (
        "BatchNormalization",
        lambda node: bool(edit.integer(node, "training_mode", 0)),
        "training mode; export the model in inference mode (model.eval())",
    ),
    (
        "ConvTranspose",
        lambda node: "output_shape" in node.attributes or "auto_pad" in node.attributes,
        "an output_shape that needs an output padding of a stride or more",
    ),
    ("Dropout", lambda node: True, "training mode; export the model in inference mode (model.eval())"),
    ("GRU", _recurrent, _RECURRENT),
    (
        "LayerNormalization",
        lambda node: _used(node, 1) or _used(node, 2),
        "the mean and the deviation as outputs",
    ),
    ("LSTM", _recurrent, _RECURRENT),
    ("MaxPool", lambda node: _used(node, 1), "the indices of the maxima as output"),
    ("Pow", lambda node: _is(node, *_INTEGERS), "powers of integers other than 2; cast to float first"),
    ("ReduceMax", lambda node: _is(node, "BOOL"), "booleans; cast to int32 first"),
    ("ReduceMin", lambda node: _is(node, "BOOL"), "booleans; cast to int32 first"),
    ("Resize", lambda node: bool(edit.integer(node, "antialias", 0)), "antialias"),
    (
        "Resize",
        lambda node: _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch",
        "keep_aspect_ratio_policy; give the sizes themselves",
    ),
    (
        "Resize",
        lambda node: _text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize",
        "tf_crop_and_resize",
    ),
    ("RNN", _recurrent, _RECURRENT),
    ("RoiAlign", lambda node: _text(node, "mode", "avg") == "max", "mode max"),
)
"""(operator, test of a node, what is refused); the text completes "not this form: ..."."""
