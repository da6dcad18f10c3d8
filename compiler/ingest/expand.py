"""Function expansion: a node is replaced by the body that its operator's definition gives.

Used for functions that the model brings along and for standard operators that are defined as functions
and that nothing further down knows.
"""

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from sparsec.compiler.ingest import inference
from sparsec.compiler.ingest.errors import IngestError, quoted

CARRIED = "ai.sparsec"  # functions of this domain stay calls: the compiler has kernels for them
EXPANDING = CARRIED + ".expanding"  # for definitions on their way into the graph


def inline(model: ir.Model, opset: int) -> None:
    """Inline the model's own functions, except those of ``CARRIED`` whose body is of ``opset``."""

    def wanted(function: ir.Function) -> bool:
        return function.domain != CARRIED or function.opset_imports.get("", opset) != opset

    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            mine = model.graph.opset_imports.setdefault(domain, version)
            if mine != version and wanted(function):
                raise IngestError(
                    f"function {quoted(function.name)} is of opset {version} of domain {quoted(domain)}, "
                    f"the model of {mine}; export the model with one opset"
                )
    if any(wanted(function) for function in model.functions.values()):
        InlinePass(wanted)(model)


def expand(model: ir.Model, wanted, version: int) -> list[ir.Node]:
    """Replace standard nodes of the main graph for which ``wanted(node)`` holds; returns those replaced.

    The dtypes of their inputs must be known.  A body may use such operators itself, so this repeats.
    """
    replaced: list[ir.Node] = []
    for _ in range(8):  # bodies nest two deep at most in opset 26
        count = len(replaced)
        for node in list(model.graph):
            if node.domain or not wanted(node):
                continue
            body = _body(node, version)
            if body is None:
                continue
            function = ir.serde.deserialize_function(body)
            function.domain, function.name, function.overload = EXPANDING, node.op_type, str(len(replaced))
            function.opset_imports.clear()
            function.opset_imports.update(model.graph.opset_imports)
            model.functions[function.identifier()] = function
            node.domain, node.overload = function.domain, function.overload
            replaced.append(node)
        if len(replaced) == count:
            break
        InlinePass(lambda function: function.domain == EXPANDING)(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        inference.infer(model)
    return replaced


def _body(node: ir.Node, version: int) -> onnx.FunctionProto | None:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    for name, attr in schema.attributes.items():
        # The body refers to attributes by name, also to those that the node leaves at their default.
        if name not in node.attributes and attr.default_value.type:
            node.attributes[name] = ir.serde.deserialize_attribute(attr.default_value)
    if schema.has_context_dependent_function:
        function = _body_for_types(schema, node)
    elif schema.has_function:
        function = schema.function_body
    else:
        return None
    if not function.node:
        return None
    return function if _cover_outputs(function, node) else None


def _body_for_types(schema: onnx.defs.OpSchema, node: ir.Node) -> onnx.FunctionProto:
    types = []
    for value in node.inputs:
        info = onnx.TypeProto()
        if value is not None and value.type is not None:
            info = ir.serde.serialize_type(value.type)
            if value.shape is not None:
                ir.serde.serialize_shape_into(info, value.shape)
        types.append(info.SerializeToString())
    function = onnx.FunctionProto()
    data = ir.serde.serialize_node(node).SerializeToString()
    function.ParseFromString(schema.get_context_dependent_function(data, types))
    return function


def _cover_outputs(function: onnx.FunctionProto, node: ir.Node) -> bool:
    """Let the function have the outputs that the node has; False if a used one is not computed.

    Bodies declare all outputs of the operator but compute only those that this node asks for.
    """
    for index, value in enumerate(node.outputs):
        value.name = value.name or f"{node.name}/unused_{index}"  # inlining would leave it without a name
    made = {name for inner in function.node for name in inner.output} | set(function.input)
    del function.output[len(node.outputs) :]
    for name, value in zip(function.output, node.outputs, strict=False):
        if name in made:
            continue
        if value.uses() or value.is_graph_output():
            return False
        function.node.append(onnx.helper.make_node("Constant", [], [name], value_int=0))  # dies unused
    return len(function.output) == len(node.outputs)
