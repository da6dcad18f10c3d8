"""What must hold of a parsed model before any library may look at it.

onnx's own checker and shape inference crash or loop on some malformed models, and onnx_ir takes names
that nothing defines without a word.  So the structure is checked here, on the protobuf message, in plain
loops.  Harmless gaps are filled on the way: nodes get unique names, old spellings of the default domain
become the one that is used here.
"""

import math

import onnx
import onnx_ir as ir

from sparsec.compiler.ingest.errors import IngestError, quoted

MIN_OPSET, MAX_OPSET = 7, 26
"""From opset 7 on, broadcasting is NumPy's; 26 is the newest that ONNX Runtime 1.31 runs."""

_MAX_DEPTH = 16  # graphs in graphs; exporters write two or three
_FIELDS = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT32": "uint64_data",
    "UINT64": "uint64_data",
    "STRING": "string_data",
}


def check(proto: onnx.ModelProto) -> None:
    """Raise ``IngestError`` unless ``proto`` is sound; name its nodes and normalise its domains in place."""
    _opsets(proto)
    _unify_domains(proto)
    if proto.graph.sparse_initializer:
        raise IngestError(
            "the model stores sparse_initializer tensors, which are not supported; "
            "export dense weights that contain zeros, sparsec finds the pattern itself"
        )
    if not proto.graph.output:
        raise IngestError("the model has no output; export it again with at least one")
    _graph(proto.graph, frozenset(), 0)
    seen: set[tuple[str, str, str]] = set()
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in seen:
            raise IngestError(
                f"function {quoted(function.name)} of domain {quoted(function.domain)} is defined twice"
            )
        seen.add(key)
        known = _fresh(function.input, frozenset(), f"an input of function {quoted(function.name)}")
        _nodes(function.node, known, set(function.input), 0)
        _defined(function.output, known, f"output of function {quoted(function.name)}")
    _acyclic(proto)


def _opsets(proto: onnx.ModelProto) -> None:
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise IngestError(
                f"the model imports domain {quoted(domain)} in two versions, "
                f"{versions[domain]} and {entry.version}; one is allowed"
            )
    if not proto.opset_import:
        raise IngestError(
            "the model names no opset (opset_import is empty); export it again with opset 7 or newer"
        )
    version = versions.get("")
    uses_standard = any(node.domain in ("", "ai.onnx") for node in proto.graph.node)
    if version is None and uses_standard:
        raise IngestError("the model uses standard operators but imports no opset for them; export it again")
    if version is not None and not MIN_OPSET <= version <= MAX_OPSET:
        raise IngestError(
            f"the model is of opset {version}, sparsec takes {MIN_OPSET} to {MAX_OPSET}; export it again"
        )


def _unify_domains(proto: onnx.ModelProto) -> None:
    owners = [proto, *proto.functions]
    for owner in owners:
        kept = {("" if e.domain == "ai.onnx" else e.domain): e.version for e in owner.opset_import}
        del owner.opset_import[:]
        owner.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in kept.items())
    for function in proto.functions:
        if function.domain in ("", "ai.onnx"):
            raise IngestError(
                f"function {quoted(function.name)} redefines an operator of the standard domain; "
                "give it a domain of its own"
            )


def _graph(graph: onnx.GraphProto, outer: frozenset[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise IngestError(
            f"graph {quoted(graph.name)} lies more than {_MAX_DEPTH} graphs deep; flatten the model"
        )
    known = _fresh([v.name for v in graph.input], outer, "an input")
    constants: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in constants:
            raise IngestError(f"initializer {quoted(tensor.name)} is defined twice or has no name")
        constants.add(tensor.name)
        _tensor(tensor)
    known |= constants
    for value in graph.input if depth == 0 else ():
        if value.type.WhichOneof("value") is None:
            raise IngestError(f"input {quoted(value.name)} has no type; export the model again")
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.HasField("tensor_type") and not ir_dtype(value.type.tensor_type.elem_type):
            raise IngestError(
                f"{quoted(value.name)} has element type {value.type.tensor_type.elem_type}, "
                "which ONNX does not define"
            )
    own = constants | {v.name for v in graph.input}
    _nodes(graph.node, known, own, depth, late={o for n in graph.node for o in n.output if o})
    _defined([v.name for v in graph.output], known, "output")


def _fresh(names, outer: frozenset[str], what: str) -> set[str]:
    known = set(outer)
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise IngestError(f"{what} named {quoted(name)} is defined twice or has no name")
        seen.add(name)
    return known | seen


def _nodes(nodes, known: set[str], own: set[str], depth: int, late: frozenset | set = frozenset()) -> None:
    """Check ``nodes`` and add what they define to ``known`` (what can be read) and ``own`` (defined in
    this graph); ``late`` may be read before its definition, which a topological sort cures."""
    names: set[str] = set()
    for index, node in enumerate(nodes):
        if not node.op_type:
            raise IngestError(f"node {index} has no operator type; the file is damaged")
        if node.domain == "ai.onnx":
            node.domain = ""
        if not node.name or node.name in names:
            node.name = _unique(f"{node.name or node.op_type}_{index}", names)
        names.add(node.name)
        for name in node.input:
            if name and name not in known and name not in late:
                raise IngestError(
                    f"{node.op_type} {quoted(node.name)} reads {quoted(name)}, which nothing defines; "
                    "the model is damaged"
                )
        for attr in node.attribute:
            _attribute(attr, node, known | late, depth)
        for name in node.output:
            if name and name in own:
                raise IngestError(f"{quoted(name)} is defined twice, the second time by {quoted(node.name)}")
            own.add(name)
        known.update(name for name in node.output if name)


def _unique(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _attribute(attr: onnx.AttributeProto, node: onnx.NodeProto, known, depth: int) -> None:
    if attr.HasField("t"):
        _tensor(attr.t, f"{attr.name} of {node.name}")
    for tensor in attr.tensors:
        _tensor(tensor, f"{attr.name} of {node.name}")
    if attr.sparse_tensor.dims or attr.sparse_tensors:
        raise IngestError(f"{node.op_type} {quoted(node.name)} holds a sparse tensor; export it dense")
    for graph in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
        _graph(graph, frozenset(known), depth + 1)


def _defined(names, known: set[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise IngestError(f"{what} {quoted(name)} is defined by nothing; the model is damaged")


def ir_dtype(number: int) -> ir.DataType | None:
    """onnx_ir's dtype for ``number``, or None where there is none or it is undefined."""
    try:
        return ir.DataType(number) or None
    except ValueError:
        return None


def _tensor(tensor: onnx.TensorProto, where: str = "") -> None:
    """Size and bytes of a tensor must agree, or reading it would fail far from here."""
    name = quoted(tensor.name or where)
    dtype = ir_dtype(tensor.data_type)
    if dtype is None:
        raise IngestError(f"tensor {name} has element type {tensor.data_type}, which ONNX does not define")
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise IngestError(f"tensor {name} has shape {dims}: sizes cannot be negative")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        for entry in tensor.external_data:
            text = entry.value
            if entry.key in ("offset", "length") and not (
                text.isascii() and text.isdigit() and len(text) < 20
            ):
                raise IngestError(
                    f"external data of {name}: {entry.key} {quoted(text)} is not a number of bytes"
                )
        return
    count = math.prod(dims)
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            raise IngestError(f"tensor {name} holds strings as raw bytes; the file is damaged")
        needed, found, unit = math.ceil(count * dtype.bitwidth / 8), len(tensor.raw_data), "bytes"
    else:
        field = _FIELDS.get(dtype.name, "int32_data")
        per_element = 2 if dtype.name.startswith("COMPLEX") else 1
        needed, found, unit = count * per_element, len(getattr(tensor, field)), f"values in {field}"
        if dtype != ir.DataType.STRING and dtype.bitwidth < 8:
            needed = math.ceil(count * dtype.bitwidth / 8)
    if needed != found:
        raise IngestError(
            f"tensor {name} of {dtype.name} {dims} needs {needed} {unit}, the file has {found}; it is damaged"
        )


def _acyclic(proto: onnx.ModelProto) -> None:
    """Functions that call themselves, directly or not, have no expansion."""
    calls = {
        (f.domain, f.name): {(n.domain, n.op_type) for n in f.node}
        & {(g.domain, g.name) for g in proto.functions}
        for f in proto.functions
    }
    done: set = set()
    while len(done) < len(calls):
        ready = [key for key, callees in calls.items() if key not in done and callees <= done]
        if not ready:
            names = ", ".join(sorted(quoted(key[1]) for key in calls.keys() - done))
            raise IngestError(f"functions call each other in a circle: {names}; the model has no expansion")
        done.update(ready)
