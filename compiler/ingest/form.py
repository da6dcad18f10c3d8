"""The stages of ingest, in order."""

import json
import logging

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from sparsec.compiler.ingest import (
    OPSET,
    SOURCE_DIMS,
    control,
    expand,
    fold,
    freeze,
    fuse,
    light,
    load,
    opset,
    sequences,
    simplify,
    support,
)
from sparsec.compiler.ingest.errors import IngestError, one_line, quoted

MAX_ROUNDS = 50  # real models settle in 2 to 6; nested loops need one per level

# onnx_ir's passes log what they skip; what matters to a user is said by ingest itself.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def ingest(path, shapes: dict, dims: dict, log) -> ir.Model:
    """See ``sparsec.compiler.ingest.ingest``."""
    model = load.load(path)
    _prepare(model)
    declared = {v.name: freeze.source_dims(v) for v in (*model.graph.inputs, *model.graph.outputs)}
    freeze.freeze(model, shapes, dims, log)
    _forget_shapes(model)
    if model.graph.opset_imports.get("", OPSET) > OPSET:
        infer(model)  # expanding what is newer needs the dtypes
    model = opset.convert(model)
    settle(model)
    replaced = expand.expand(model, lambda node: not support.handled(node), OPSET)
    for op_type in sorted({node.op_type for node in replaced}):
        log(f"{op_type} was replaced by the standard operators that define it")
    settle(model)
    fuse.fuse(model.graph)
    settle(model)
    support.check(model)
    _finish(model, declared)
    return model


def settle(model: ir.Model) -> None:
    """Infer, fold and simplify until nothing changes any more."""
    failed: set[str] = set()
    before = None
    for _ in range(MAX_ROUNDS):
        infer(model)
        fold.shapes(model.graph)
        fold.constants(model, failed)
        simplify.simplify(model.graph)
        sequences.resolve(model.graph)
        control.resolve(model)
        _lift(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        # What the passes report is not relied on: onnx_ir 1.1.0 says "not modified" of some that did.
        after = _fingerprint(model)
        if after == before:
            return
        before = after
    raise IngestError(
        f"the model does not settle in {MAX_ROUNDS} rounds of constant folding; "
        "it is nested too deeply, export it with static shapes and without loops"
    )


def infer(model: ir.Model) -> None:
    """Shapes and dtypes by onnx's inference, with the values of shape arithmetic propagated."""
    proto, _ = light.serialize(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # bare C++ exceptions
        raise IngestError(
            f"the model contradicts itself, by onnx's shape inference: {one_line(error)}"
        ) from error
    types = {v.name: v.type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            found = types.get(value.name)
            if found is None:
                continue
            if value.type is None or found.HasField("tensor_type"):
                value.type = ir.serde.deserialize_type_proto_for_type(found)
            shape = ir.serde.deserialize_type_proto_for_shape(found)
            if shape is not None and (value.shape is None or not value.shape.is_static()):
                value.shape = shape


def _prepare(model: ir.Model) -> None:
    """Bring the model into the plainest shape that still means the same."""
    inputs = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    for value in inputs:
        model.graph.inputs.remove(value)
    try:
        common.TopologicalSortPass()(model)
    except ValueError:
        raise IngestError(
            "the nodes of the model depend on each other in a circle; it has no order to run in"
        ) from None
    expand.inline(model, OPSET)
    for node in model.graph.all_nodes():
        for key, attr in node.attributes.items():
            if attr.is_ref():
                raise IngestError(
                    f"{node.op_type} {quoted(node.name)}: attribute {key} refers to an attribute of a function, "
                    "but the node is in none; the file is damaged"
                )
    _lift(model)


def _lift(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)


def _forget_shapes(model: ir.Model) -> None:
    """Drop the shapes that the exporter wrote for computed values: they describe other input sizes.

    Where no inference can replace them, for operators of other domains, sizes that are numbers stay.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not node.domain or value.shape is None or not value.shape.is_static():
                value.shape = None


def _fingerprint(model: ir.Model) -> tuple:
    nodes = tuple(
        (n.op_type, n.domain, len(n.inputs), tuple(str(v.shape) for v in n.outputs)) for n in model.graph
    )
    return nodes, tuple(sorted(model.graph.initializers))


def _finish(model: ir.Model, declared: dict) -> None:
    graph = model.graph
    taken: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    graph.opset_imports.setdefault("", OPSET)
    model.ir_version = 10
    for value in (*graph.inputs, *graph.outputs):
        value.metadata_props[SOURCE_DIMS] = json.dumps(declared.get(value.name))
