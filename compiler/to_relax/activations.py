"""MatMul of two activations, as attention has it; transposes around it are absorbed, not performed."""

import onnx_ir as ir
from tvm import relax

from sparsec.schedules.batch_matmul import BatchMatmul


def matmul(importer, node: ir.Node, inputs):
    """One batched kernel; an operand that is a transposed tensor is read where it lies."""
    shapes = [[int(d) for d in value.shape] for value in node.inputs]
    if node.inputs[0].dtype != ir.DataType.FLOAT or min(map(len, shapes)) < 2:
        return None
    rank = max(map(len, shapes))
    (a, a_order), (b, b_order) = (operand(importer, node, i, inputs[i], rank) for i in (0, 1))
    lead = [(1,) * (rank - len(shape)) + tuple(shape[:-2]) for shape in shapes]
    y_order = consumer_order(node, rank)
    spec = BatchMatmul(*lead, shapes[0][-2], shapes[0][-1], shapes[1][-1], a_order, b_order, y_order or ())
    a, b = (reshaped(importer, x, shape) for x, shape in ((a, spec.a_shape), (b, spec.b_shape)))
    product = importer.kernel("batch_matmul", spec.prim_func(), [a, b], list(spec.y_shape))
    if y_order is None:
        return product
    importer.stored[node.outputs[0]] = product, y_order
    return relax.op.permute_dims(product, [y_order.index(axis) for axis in range(rank)])


def transpose(importer, node: ir.Node, inputs):
    """Nothing, where a kernel has written its result in the wanted order already."""
    product, order = importer.stored.get(node.inputs[0], (None, None))
    return product if order is not None and order == permutation(node) else None


def operand(importer, node: ir.Node, index: int, x, rank: int):
    """``(expression, order)``: the operand, or what it is the transpose of and the order it has there."""
    value = node.inputs[index]
    source = value.producer()
    if source is None or source.op_type != "Transpose" or source.domain or len(value.shape) != rank:
        return x, ()
    perm = permutation(source)
    order = tuple(perm.index(axis) for axis in range(rank))  # stored axis -> logical axis
    return importer.expression(source.inputs[0]), order


def consumer_order(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """The permutation of the one Transpose that reads ``node``, if that is all that does."""
    out = node.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output() or len(out.shape) != rank:
        return None
    consumer = uses[0].node
    return permutation(consumer) if consumer.op_type == "Transpose" and not consumer.domain else None


def permutation(node: ir.Node) -> tuple[int, ...]:
    rank = len(node.inputs[0].shape)
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else tuple(range(rank))[::-1]


def reshaped(importer, x, shape):
    return (
        x
        if tuple(int(d) for d in x.ty.shape) == tuple(shape)
        else importer.bb.emit(relax.op.reshape(x, shape))
    )
