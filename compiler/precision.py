"""Which layers compute in bfloat16, and which values stay bfloat16 between them.

Operands of products are rounded, sums are not.  Layers keep float32 where the outputs see the rounding at
first hand, and where this precision would not be faster; normalisers and everything else that is no layer
with weights always do.  A value is kept as bfloat16 where a layer or an attention reads it that way and
everything else that reads it can widen it in passing; so a residual is rounded with what is added to it.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from math import prod
from types import MappingProxyType

import onnx_ir as ir

from sparsec.compiler.channels_last import BROADCAST, UNARY
from sparsec.compiler.to_relax import integer
from sparsec.compiler.to_relax.attention import Found
from sparsec.compiler.to_relax.linear import PRECISION, is_layer, run_spec
from sparsec.compiler.to_relax.narrow import VIEWS
from sparsec.compiler.to_relax.products import products
from sparsec.compiler.to_relax.views import STEPS
from sparsec.compiler.to_relax.weight_quant import why_not_narrow
from sparsec.passes import Finding
from sparsec.passes.ops import weight_quant
from sparsec.schedules.contraction_spec import kind_of
from sparsec.schedules.elements import BFLOAT16, FLOAT32

#: Levels on which a product of bfloat16 is no slower than one of float32; elsewhere it is only half as large.
PRODUCTS = ("v4bf16", "v4", "neonbf16")
#: Rows up to which a layer is limited by reading its weights.
FEW_ROWS = 4
#: Between the last layer and an output: what does not look away from its rounding.
_BEHIND = UNARY | BROADCAST | {*VIEWS, "Transpose", "Softmax", "LogSoftmax", "ArgMax", "TopK", "Cast"}
_ELEMENTWISE = UNARY | BROADCAST
#: What attention may look through to find its operands: views, and a factor that goes to the scores.
_LOOKED_THROUGH = {*STEPS, "Mul", "Div"}


def assign(
    model: ir.Model, precision: str, levels: tuple[str, ...], only: Collection[str] | None = None
) -> list[Finding]:
    """Marks every layer of ``model``, or those whose names are in ``only``, with its precision, for
    ``linear.layer``; one finding for each.

    Without bfloat16 there is one for each weight of a few bits that no kernel takes.
    """
    if precision != "bf16":
        narrow = ((node, why_not_narrow(node)) for node in model.graph if node.op_type == weight_quant.NAME)
        return [
            Finding("precision", node.name, "declined", f"as float32: {why}", node.op_type, FLOAT32.name)
            for node, why in narrow
            if why
        ]
    findings = []
    for node in model.graph:
        if is_layer(node) and (only is None or node.name in only):
            chosen, reason = wanted(node, levels)
            node.metadata_props[PRECISION] = chosen
            outcome = "declined" if chosen == FLOAT32.name else "applied"
            findings.append(Finding("precision", node.name, outcome, reason, "float32", chosen))
    return findings


def judged(model: ir.Model, precision: str) -> str:
    """The precision whose tolerance ``model`` is compared with, ``precision`` being asked for."""
    if any(map(integer.is_layer, model.graph)):
        return integer.INT8.name
    quantised = any(node.op_type == weight_quant.NAME for node in model.graph)
    return "int8-weights" if precision == "fp32" and quantised else precision


def wanted(node: ir.Node, levels: tuple[str, ...]) -> tuple[str, str]:
    rows = prod(int(d) for d in node.outputs[0].shape[:-1])
    few = rows <= FEW_ROWS
    if is_last(node.outputs[0]):
        if few:
            return "bfloat16 weights", f"the last layer, limited by reading weights: {rows} rows"
        return FLOAT32.name, "the last layer: its rounding would be the output's"
    if levels[0] in PRODUCTS:
        return "bfloat16", f"level {levels[0]}"
    if few:
        return "bfloat16 weights", f"limited by reading weights: {rows} rows"
    return FLOAT32.name, f"level {levels[0]} has no products of bfloat16, and {rows} rows share each weight"


def is_last(value: ir.Value) -> bool:
    """Whether ``value`` becomes an output without another layer or normaliser in between."""
    seen, work = set(), [value]
    while work:
        at = work.pop()
        if at.is_graph_output():
            return True
        for node, _ in at.uses():
            if node not in seen and node.op_type in _BEHIND:
                seen.add(node)
                work += node.outputs
    return False


def narrow(
    model: ir.Model,
    kernels: Mapping[str, str],
    makers: Collection[str] = (),
    attended: Sequence[Found] = (),
    results: Collection[ir.Value] = (),
) -> frozenset[ir.Value]:
    """The values that are kept with 16 bits, with ``kernels`` as chosen for the layers.

    ``makers``: other operators whose kernels can round what they write, and ``results`` of further ones.
    ``attended``: attentions whose kernels can read them, where layers do.
    """
    takers = _takers(model, kernels)
    candidates = [
        value
        for node in model.graph
        if node.op_type in makers or _rounds(node)
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT
    ]
    candidates += results
    attended = attended if takers else []
    while True:
        found = frozenset(value for value in candidates if _narrow(value, takers, attended))
        whole = [each for each in attended if found.issuperset(each.multiplied)]
        if len(whole) == len(attended):
            return found | _views(model, found, takers, attended)
        attended = whole  # one that does not get all three narrow takes none


def _views(
    model: ir.Model, found: Set[ir.Value], takers: set[ir.Node], attended: Sequence[Found]
) -> frozenset[ir.Value]:
    """The values that are others of ``found`` in another shape, and are read as they are."""
    views: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type in VIEWS and (node.inputs[0] in found or node.inputs[0] in views):
            views.update(value for value in node.outputs if _narrow(value, takers, attended))
    return frozenset(views)


def told(
    model: ir.Model,
    kernels: Mapping[str, str],
    attended: Sequence[Found],
    values: Set[ir.Value],
    half: str = BFLOAT16.name,
    unfit: Mapping[ir.Node, str | None] = MappingProxyType({}),
) -> list[Finding]:
    """Whether each attention reads 16 bits, where layers do; ``values`` are what ``narrow`` found.

    ``unfit``: why the kernel of an attention, by its last product, cannot.
    """
    takers, findings = _takers(model, kernels), []
    for each in attended if takers else ():
        wide = [value for value in each.multiplied if value not in values]
        outcome, after = ("declined", FLOAT32.name) if wide else ("applied", half)
        reason = "attention whose queries, keys and values are kept so"
        if wide:
            causes = (v for v in wide if not _rounds(v.producer()) or not _narrow(v, takers, [each]))
            value = next(causes, wide[0])
            reason = f"attention: something that needs more reads '{value.name}', too"
            if not _rounds(value.producer()):
                reason = f"attention: no layer makes '{value.name}'"
            if unfit.get(each.products[1]):
                reason = f"attention: {unfit[each.products[1]]}"
        findings.append(Finding("precision", each.products[1].name, outcome, reason, FLOAT32.name, after))
    return findings


def _takers(model: ir.Model, kernels: Mapping[str, str]) -> set[ir.Node]:
    """The layers that read 16 bits."""
    return {
        node
        for node in model.graph
        if PRECISION in node.metadata_props
        and all(kind_of(run_spec(node, s, kernels)).activation != "float32" for s, _ in products(node))
    }


def _rounds(node: ir.Node | None) -> bool:
    """Whether rounding can be fused into the kernel of ``node``."""
    return node is not None and (node.op_type in _ELEMENTWISE or is_layer(node))


def _narrow(value: ir.Value, takers: set[ir.Node], attended: Sequence[Found]) -> bool:
    """Whether a layer or an attention takes ``value`` in 16 bits, and nothing needs more of it."""
    taken, work = any(value in each.multiplied for each in attended), [value]
    products = {node for each in attended for node in each.products}
    while work:
        at = work.pop()
        if at.is_graph_output():
            return False
        for node, position in at.uses():
            if node in takers and position == 0:
                taken = True
            elif node.op_type in VIEWS:
                work += node.outputs
            elif node.op_type not in _ELEMENTWISE and not _read_in_place(node, products):
                return False
    return taken


def _read_in_place(node: ir.Node, products: set[ir.Node]) -> bool:
    """Whether ``node`` is one of the ``products`` of an attention or leads to them by views alone."""
    if node in products:
        return True
    return node.op_type in _LOOKED_THROUGH and all(
        not value.is_graph_output() and all(_read_in_place(user, products) for user, _ in value.uses())
        for value in node.outputs
    )
