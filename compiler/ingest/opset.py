"""One internal opset for every model.

Older models are converted upwards by onnx's version converter, which has an adapter for every change of
the standard operators since opset 7.  Newer ones are brought down here: what opset 20 does not have, or
defines differently, is replaced by its function body; the rest differs only by types and by attributes,
which must have their default values.
"""

import onnx
import onnx_ir as ir
from onnx import version_converter

from sparsec.compiler.ingest import OPSET, expand, light
from sparsec.compiler.ingest.errors import IngestError, one_line, quoted

# Newer definitions that mean something else than the one of opset 20 by the same name.
_REDEFINED = {"GroupNormalization"}


def convert(model: ir.Model) -> ir.Model:
    """``model`` in opset ``OPSET``; functions that are carried along must be in it already."""
    version = model.graph.opset_imports.setdefault("", OPSET)
    if version < OPSET:
        return _up(model)
    if version > OPSET:
        _down(model, version)
    return model


def _up(model: ir.Model) -> ir.Model:
    version = model.graph.opset_imports[""]
    unknown = [n for n in model.graph.all_nodes() if not n.domain and _schema(n.op_type, version) is None]
    if unknown:
        listed = ", ".join(f"{node.op_type} {quoted(node.name)}" for node in unknown)
        raise IngestError(
            f"opset {version} of ONNX does not define what the model uses: {listed}; export it again"
        )
    for node in model.graph.all_nodes():
        if node.op_type == "Scan" and not node.domain and version < 9:
            # Opset 8 has a batch axis in every input; the converter drops it without a word.
            raise IngestError(
                f"Scan {quoted(node.name)} is of opset 8, where it means something else; "
                "export the model with opset 9 or newer"
            )
    functions = dict(model.functions)
    model.functions.clear()
    proto, big = light.serialize(model)
    # Before IR version 4 every initializer had to be an input as well; the converter insists on it.
    proto.ir_version = max(proto.ir_version, 8)
    try:
        converted = version_converter.convert_version(proto, OPSET)
    except Exception as error:  # bare RuntimeErrors, with places in C++ sources before the text
        reason = one_line(error).rpartition("failed: ")[2]
        raise IngestError(
            f"the model of opset {version} cannot be converted to opset {OPSET}: {reason}; "
            f"export it again with opset {OPSET}"
        ) from error
    result = light.restore(converted, big)
    result.functions.update(functions)
    for domain, number in model.graph.opset_imports.items():
        result.graph.opset_imports.setdefault(domain, number)
    return result


def _down(model: ir.Model, version: int) -> None:
    def is_newer(node: ir.Node) -> bool:
        return not node.domain and (node.op_type in _REDEFINED or _schema(node.op_type, OPSET) is None)

    expand.expand(model, is_newer, version)
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        new, old = _schema(node.op_type, version), _schema(node.op_type, OPSET)
        if old is None or new is None:
            continue  # support lists it, with all the others
        for name in [n for n in node.attributes if n not in old.attributes]:
            default = new.attributes[name].default_value if name in new.attributes else None
            value = node.attributes[name]
            if default is None or onnx.helper.get_attribute_value(default) != _plain(value.value):
                raise IngestError(
                    f"{node.op_type} {quoted(node.name)} sets {name}={_plain(value.value)}, which opset "
                    f"{OPSET} does not have; export the model with opset {OPSET}"
                )
            del node.attributes[name]
    model.graph.opset_imports[""] = OPSET


def _plain(value):
    return value.encode() if isinstance(value, str) else value


def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
