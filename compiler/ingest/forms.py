"""Forms of imported operators that TVM's importer gets wrong or does not know, and that are refused."""

import onnx_ir as ir

from sparsec.compiler.ingest import edit, normalise


def _used(node: ir.Node, index: int) -> bool:
    value = node.outputs[index] if len(node.outputs) > index else None
    return value is not None and bool(value.uses() or value.is_graph_output())


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def _is(node: ir.Node, *dtypes: str) -> bool:
    return bool(node.inputs[0].dtype) and node.inputs[0].dtype.name in dtypes


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
    (
        "LayerNormalization",
        lambda node: _used(node, 1) or _used(node, 2),
        "the mean and the deviation as outputs",
    ),
    ("MaxPool", lambda node: _used(node, 1), "the indices of the maxima as output"),
    ("Pow", lambda node: _is(node, *_INTEGERS), "powers of integers other than 2; cast to float first"),
    ("ReduceMax", lambda node: _is(node, "BOOL"), "booleans; cast to int32 first"),
    ("ReduceMin", lambda node: _is(node, "BOOL"), "booleans; cast to int32 first"),
    ("Resize", lambda node: bool(edit.integer(node, "antialias", 0)), "antialias"),
    (
        "Resize",
        lambda node: _text(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric",
        "coordinate_transformation_mode half_pixel_symmetric",
    ),
    (
        "Resize",
        lambda node: _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch",
        "keep_aspect_ratio_policy; give the sizes themselves",
    ),
    (
        "Resize",
        lambda node: normalise.scaled(node) and not normalise.exact_scales(node),
        "scales that do not divide the sizes evenly; give sizes instead of scales",
    ),
    (
        "Resize",
        lambda node: bool(edit.integer(node, "exclude_outside", 0)),
        "exclude_outside",
    ),
    ("Resize", lambda node: "axes" in node.attributes, "tf_crop_and_resize of some axes"),
    ("RoiAlign", lambda node: _text(node, "mode", "avg") == "max", "mode max"),
)
"""(operator, test of a node, what is refused); the text completes "not this form: ..."."""
