"""Attention found in the graph: product of queries and keys, scores, normaliser, product with the values.

    MatMul(normaliser(score(MatMul(Q, K^T))), V)   with Softmax, Sparsemax or Entmax over the last axis

``score`` is any chain of the elementwise operators of ``SCORE_OPS`` with constants, masks and biases, so
every exporter's way to scale and to mask is the same case, and NaN and infinities go the way that they go in
the graph.  A constant factor of Q or K is moved to the scores.  A guard for rows without a key,
``Where(IsNaN(P), 0, P)`` or ``Where(row has none, 0, P)``, may follow the normaliser.  Q, K, V and masks are
read where they lie, through any chain of views; the result is written as the Transpose behind it wants it.
QuantizeLinear and DequantizeLinear around scores and P join them, see ``attention_quantised``.
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.to_relax.activations import consumer_order
from sparsec.compiler.to_relax.attention_quantised import Numbers, pair
from sparsec.compiler.to_relax.views import View, broadcast, itself, scalar, shape_of, view
from sparsec.schedules.attention import SCORE_OPS, Attention

NORMALISERS = {
    ("", "Softmax"): "softmax",
    ("ai.sparsec", "Sparsemax"): "sparsemax",
    ("ai.sparsec", "Entmax"): "entmax",
}


@dataclass(frozen=True)
class Found:
    """An attention in the graph: ``sources`` hold Q, K, V and the operands; ``products``: Q K^T and P V.

    ``numbers`` are those of the spec.
    """

    spec: Attention
    sources: tuple[ir.Value, ...]
    products: tuple[ir.Node, ir.Node]
    numbers: np.ndarray

    @property
    def multiplied(self) -> tuple[ir.Value, ...]:
        """Those that hold Q, K and V."""
        return self.sources[:3]

    @property
    def written(self) -> ir.Value:
        """What the kernel writes: the product, or what the Transpose behind it makes of it."""
        result = self.products[1].outputs[0]
        return next(iter(result.uses())).node.outputs[0] if self.spec.y_order else result


def attentions(model: ir.Model) -> list[Found]:
    """Every attention of ``model`` that gets the kernel, but for those of bytes, which stay as they are."""
    found = (find(node) for node in model.graph if node.op_type == "MatMul" and not node.domain)
    return [each for each in found if each is not None and not each.spec.bytes]


def attend(importer, node: ir.Node):
    """The kernel of the attention that ends in the MatMul ``node``; None where there is none."""
    found = find(node)
    if found is None:
        return None
    spec, expressions = found.spec, [importer.expression(source) for source in found.sources]
    narrow = importer.narrow
    if narrow.values.issuperset(found.multiplied):
        expressions[:3] = [narrow.bits[x] for x in expressions[:3]]
        spec = spec.narrowed(narrow.half.name)
    if found.written in narrow.values:
        spec = replace(spec, half=narrow.half.name, y_dtype="uint16")
    args = [
        importer.bb.emit(relax.op.reshape(x, [prod(shape_of(source))]))
        for x, source in zip(expressions, found.sources, strict=True)
    ]
    args += [relax.const(found.numbers)] if spec.numbers else []
    result = importer.kernel("attention", spec.prim_func(), args, list(spec.y_shape), spec.y_dtype)
    if spec.y_dtype != "float32":
        result = narrow.wide(result)
    if not spec.y_order:
        return result
    importer.stored[node.outputs[0]] = result, spec.y_order
    rank = len(spec.y_order)
    return relax.op.permute_dims(result, [spec.y_order.index(axis) for axis in range(rank)])


def find(node: ir.Node) -> Found | None:
    """The attention that ends in ``node``."""
    operands: list[ir.Value] = []
    share, guard = _guard(node.inputs[0], operands)
    norm = share.producer() if share is not None else None
    if norm is None or (norm.domain, norm.op_type) not in NORMALISERS:
        return None
    shape = shape_of(share)
    rank = len(shape)
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    if axis not in (-1, rank - 1) or share.dtype != ir.DataType.FLOAT or not _only_use(norm.inputs[0]):
        return None
    score, product = _score(norm.inputs[0], shape, operands)
    if product is None:
        return None
    values, keys = node.inputs[1], product.inputs[1]
    queries = product.inputs[0]
    if values.const_value is not None or keys.const_value is not None:
        return None  # a layer with a weight, which is packed
    batch = shape[:-2]
    m, n, d, e = shape[-2], shape[-1], shape_of(queries)[-1], shape_of(values)[-1]
    if 0 in (*shape, d, e) or shape_of(node.outputs[0]) != (*batch, m, e):
        return None
    q, k, v = view(queries, True), view(keys, True), view(values)
    k = k if 1 in k.array.strides[-2:] else itself(keys)
    v = v if v.array.strides[-1] == 1 else itself(values)
    q, k, v = (broadcast(part, (*batch, *last)) for part, last in ((q, (m, d)), (k, (d, n)), (v, (n, e))))
    factor = q.factor * k.factor
    numbers = Numbers()
    if (stored := numbers.integers([q, k, v], guard)) is not None:
        (q, k, v), factor, guard = stored
    masks = [broadcast(_by_keys(value), shape) for value in operands]
    keys_last = k.placed()
    *outer, along_d, along_keys = keys_last.strides
    spec = Attention(
        batch,
        m,
        n,
        d,
        e,
        q.placed(),
        replace(keys_last, strides=(*outer, along_keys, along_d)),
        v.placed(),
        NORMALISERS[norm.domain, norm.op_type],
        numbers.expanded(score, factor),
        numbers.expanded(guard),
        tuple(mask.placed() for mask in masks),
        consumer_order(node, rank) or (),
        alpha=norm.attributes.get_float("alpha", 1.5) if norm.op_type == "Entmax" else 2.0,
        numbers=len(numbers),
    )
    sources = (part.source for part in (q, k, v, *masks))
    return Found(spec, tuple(sources), (product, node), numbers.array)


def _only_use(value: ir.Value, uses: int = 1) -> bool:
    """Whether nothing outside of the pattern, which has ``uses`` of it, reads ``value``."""
    return len(value.uses()) == uses and not value.is_graph_output()


def _guard(value: ir.Value, operands: list) -> tuple[ir.Value, object] | tuple[None, None]:
    """``(P, expression)`` of the factor of V: P itself, or 0 instead of it in rows without a key."""
    where = value.producer()
    if where is None or where.domain or not _only_use(value):
        return None, None
    if (rounded := pair(value)) is not None:
        share, guard = _guard(rounded.source, operands)
        return (None, None) if guard is None else (share, ("Pair", guard, rounded))
    if where.op_type != "Where":
        return value, "S"
    test, zero, share = where.inputs
    check = test.producer()
    if scalar(zero) != 0 or shape_of(share) != shape_of(value):
        return None, None
    if check is not None and check.op_type == "IsNaN" and check.inputs[0] is share:
        inside = _only_use(share, 2) and _only_use(test)
        return (share, ("Where", ("IsNaN", "S"), 0.0, "S")) if inside else (None, None)
    if not _only_use(share) or shape_of(test)[-1:] not in ((), (1,)):
        return None, None
    if test.const_value is not None and not test.const_value.numpy().any():
        return share, "S"
    return share, ("Where", _operand(test, operands), 0.0, "S")


def _score(value: ir.Value, shape, operands: list) -> tuple[object, ir.Node | None]:
    """``(expression, MatMul node)`` of a value of ``shape``; other values are added to ``operands``."""
    node = value.producer()
    if node is None or node.domain or shape_of(value) != shape or not _only_use(value):
        return None, None
    if node.op_type == "MatMul":
        return "S", node
    if (rounded := pair(value)) is not None:
        tree, product = _score(rounded.source, shape, operands)
        return (None, None) if product is None else (("Pair", tree, rounded), product)
    if node.op_type not in SCORE_OPS or value.dtype != ir.DataType.FLOAT:
        return None, None
    for index, part in enumerate(node.inputs):
        tree, product = _score(part, shape, operands)
        if product is not None:
            args = [tree if i == index else _operand(x, operands) for i, x in enumerate(node.inputs)]
            return (None, None) if None in args else ((node.op_type, *args), product)
    return None, None


def _operand(value: ir.Value, operands: list):
    number = scalar(value)
    if number is not None:
        return number
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.BOOL):
        return None
    if value not in operands:
        operands.append(value)
    return "operand", operands.index(value)


def _by_keys(value: ir.Value) -> View:
    """Where ``value`` lies, if neighbours along the keys are neighbours there, else itself."""
    found = view(value)
    scattered = found.array.ndim and found.array.shape[-1] > 1 and found.array.strides[-1] != 1
    return itself(value) if scattered else found
