"""The stages of ingest, in order."""

import json
import logging

import onnx_ir as ir
from onnx_ir.passes import common

from sparsec import passes
from sparsec.compiler.ingest import (
    OPSET,
    SOURCE_DIMS,
    contrib,
    control,
    expand,
    fold,
    freeze,
    fuse,
    load,
    normalise,
    opset,
    sequences,
    simplify,
    support,
    weight_quant,
)
from sparsec.compiler.ingest.errors import IngestError, quoted
from sparsec.compiler.ingest.inference import infer

MAX_ROUNDS = 50  # real models settle in 2 to 6; nested loops need one per level

# onnx_ir's passes log what they skip; what matters to a user is said by ingest itself.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def ingest(path, shapes: dict, dims: dict, integers: bool, log) -> ir.Model:
    """See ``sparsec.compiler.ingest.ingest``."""
    try:
        return _ingest(load.load(path), shapes, dims, integers, log)
    except (IngestError, MemoryError):
        raise
    except Exception as error:
        # Libraries trip over models that are not valid in ways that nobody foresees.  onnx's checker can
        # tell whose fault it was; it runs only here, because it refuses models that run everywhere else.
        fault = load.fault(path)
        if fault is None:
            raise
        raise IngestError(f"the model is not valid ONNX: {fault}") from error


def _ingest(model: ir.Model, shapes: dict, dims: dict, integers: bool, log) -> ir.Model:
    _prepare(model)
    declared = {v.name: freeze.source_dims(v) for v in (*model.graph.inputs, *model.graph.outputs)}
    freeze.freeze(model, shapes, dims, log)
    _forget_shapes(model)
    for op_type in weight_quant.keep(model):
        log(f"weights of {op_type} are kept as integers")
    if model.graph.opset_imports.get("", OPSET) > OPSET:
        infer(model)  # expanding what is newer needs the dtypes
    model = opset.convert(model)
    for op_type in contrib.expand(model):
        log(f"{contrib.DOMAIN} {op_type} was replaced by standard operators")
    settle(model, integers)
    replaced = expand.expand(model, lambda node: not support.handled(node), OPSET)
    for op_type in sorted({node.op_type for node in replaced}):
        log(f"{op_type} was replaced by the standard operators that define it")
    settle(model, integers)
    normalise.normalise(model.graph)
    fuse.fuse(model.graph)
    settle(model, integers)
    passes.run_early(model)
    support.check(model)
    _finish(model, declared)
    return model


def settle(model: ir.Model, integers: bool = False) -> None:
    """Infer, fold and simplify until nothing changes any more; ``integers`` as in ``fold.constants``."""
    failed: set[str] = set()
    before = None
    for _ in range(MAX_ROUNDS):
        infer(model)
        fold.shapes(model.graph)
        fold.constants(model, failed, integers)
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
                    f"{node.op_type} {quoted(node.name)}: attribute {key} refers to one of a function, "
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
