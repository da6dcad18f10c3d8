"""The channels-last operators of domain ``ai.sparsec``: their names, attributes and standard-ONNX bodies."""

import onnx
import onnx_ir as ir

from sparsec.compiler.errors import CompileError

DOMAIN = "ai.sparsec"
LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}  # rank -> permutation to channels-last
FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2)}  # and back
SUFFIX = {3: "NWC", 4: "NHWC"}

ATTRS = {
    "Conv": ("dilations", "group", "pads", "strides"),
    "ConvInteger": ("dilations", "group", "pads", "strides"),
    "ConvTranspose": ("dilations", "group", "output_padding", "pads", "strides"),
    "MaxPool": ("ceil_mode", "dilations", "kernel_shape", "pads", "strides"),
    "AveragePool": ("ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"),
}
LIST_ATTRS = {"dilations", "kernel_shape", "output_padding", "pads", "strides"}


def function_body(op: str, rank: int, opset: int) -> ir.Function:
    """The standard-ONNX meaning of channels-last ``op``, one of Conv, ConvTranspose and the pools."""
    names = ATTRS[op]
    kinds = {name: "ints" if name in LIST_ATTRS else "int" for name in names}
    refs = ", ".join(f"{name}: {kind} = @{name}" for name, kind in kinds.items())
    rest = ", W, B" if op.startswith("Conv") else ""
    inputs = "X" + rest
    extra = ", n: int = 0, m: int = 0, block: int = 0, scattered: int = 0" if rest else ""
    text = f"""<opset_import: ["" : {opset}], domain: "{DOMAIN}">
    {op}{SUFFIX[rank]} <{", ".join(names)}{extra}> ({inputs}) => (Y) {{
        first = Transpose <perm = {list(FIRST[rank])}> (X)
        result = {op} <{refs}> (first{rest})
        Y = Transpose <perm = {list(LAST[rank])}> (result)
    }}"""
    return ir.from_proto(onnx.parser.parse_function(text))


def const_ints(value: ir.Value | None) -> list[int] | None:
    if value is None or value.const_value is None:
        return None
    return [int(v) for v in value.const_value.numpy().reshape(-1)]


def int_attr(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def weight_attrs(node: ir.Node) -> dict:
    """What a convolution says of its weight: the groups, and its pattern if it has one."""
    pattern = ("n", "m", "block", "scattered")
    found = {key: node.attributes[key].as_int() for key in pattern if key in node.attributes}
    return {"group": int_attr(node, "group", 1), **found}


def window(node: ir.Node, kernel: list[int], size: list[int]) -> dict:
    """``strides``, ``dilations`` and explicit ``pads`` of a convolution or pool (ONNX, auto_pad)."""
    n = len(kernel)
    ints = {k: list(a.as_ints()) for k, a in node.attributes.items() if k in ("strides", "dilations", "pads")}
    strides, dilations = ints.get("strides", [1] * n), ints.get("dilations", [1] * n)
    pads = ints.get("pads", [0] * (2 * n))
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (-(-s // st) - 1) * st + (k - 1) * d + 1 - s)
            for s, st, k, d in zip(size, strides, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    elif auto not in ("NOTSET", "VALID", ""):
        raise CompileError(f"{node.op_type} '{node.name}': auto_pad must be a standard value, found '{auto}'")
    return {"strides": strides, "dilations": dilations, "pads": pads}


def transposed_window(node: ir.Node, kernel: list[int]) -> dict:
    """The same for ConvTranspose, whose pads may be given by the shape of its output."""
    n = len(kernel)
    ints = {
        k: list(node.attributes[k].as_ints())
        for k in ("strides", "dilations", "pads", "output_padding")
        if k in node.attributes
    }
    strides, dilations = ints.get("strides", [1] * n), ints.get("dilations", [1] * n)
    extra, pads = ints.get("output_padding", [0] * n), ints.get("pads", [0] * (2 * n))
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if "output_shape" in node.attributes or auto.startswith("SAME"):
        size = [int(d) for d in node.inputs[0].shape][2:]
        wanted = [int(d) for d in node.outputs[0].shape][2:]
        total = [
            st * (s - 1) + e + (k - 1) * d + 1 - w
            for s, w, st, e, k, d in zip(size, wanted, strides, extra, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    return {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra}
