"""CumSum, TopK, ArgMax, ArgMin and IsNaN, which TVM runs as scalars, in its runtime, or simplifies away."""

import onnx_ir as ir
from tvm import relax, te, tirx

from sparsec.compiler.errors import CompileError
from sparsec.compiler.to_relax.linear import attribute
from sparsec.schedules.arg_extremum import arg_extremum as arg_extremum_kernel
from sparsec.schedules.scan import cumsum as cumsum_kernel
from sparsec.schedules.top_k import top_k


def cumsum(importer, node: ir.Node, inputs):
    shape, dtype = [int(d) for d in node.inputs[0].shape], str(inputs[0].ty.dtype)
    axis = constant(node, 1) % len(shape)
    func = cumsum_kernel(
        tuple(shape), dtype, axis, bool(attribute(node, "exclusive", 0)), bool(attribute(node, "reverse", 0))
    )
    return importer.kernel("cumsum", func, [inputs[0]], shape, dtype)


def topk(importer, node: ir.Node, inputs):
    shape, dtype = [int(d) for d in node.inputs[0].shape], str(inputs[0].ty.dtype)
    axis, k = attribute(node, "axis", -1) % len(shape), constant(node, 1)
    func = top_k(tuple(shape), dtype, axis, k, bool(attribute(node, "largest", 1)))
    found = [*shape[:axis], k, *shape[axis + 1 :]]
    both = importer.kernel("top_k", func, [inputs[0]], [found, found], [dtype, "int64"])
    parts = [importer.bb.emit(relax.TupleGetItem(both, i)) for i in range(2)]
    return parts[0] if len(node.outputs) == 1 else relax.Tuple(parts)


def arg_extremum(importer, node: ir.Node, inputs):
    shape, dtype = [int(d) for d in node.inputs[0].shape], str(inputs[0].ty.dtype)
    if "float16" in dtype or 0 in shape:
        return None
    axis = attribute(node, "axis", 0) % len(shape)
    largest, last = node.op_type == "ArgMax", bool(attribute(node, "select_last_index", 0))
    func = arg_extremum_kernel(tuple(shape), dtype, axis, largest, last)
    found = [*shape[:axis], *shape[axis + 1 :]]
    return importer.kernel(node.op_type.lower(), func, [inputs[0]], found, "int64")


_BITS = {
    "float16": ("uint16", 0x7C00),
    "float32": ("uint32", 0x7F800000),
    "float64": ("uint64", 0x7FF0000000000000),
}


def is_nan(importer, node: ir.Node, inputs):
    """By the bits, since ``x != x`` is simplified to false on the way."""
    dtype = str(inputs[0].ty.dtype)
    kind, infinity = _BITS[dtype]

    def test(x):
        def value(*i):
            bits = tirx.reinterpret(kind, x(*i)) << tirx.const(1, kind)  # without the sign
            return bits > tirx.const(2 * infinity, kind)

        return te.compute(x.shape, value, name="is_nan")

    return importer.bb.emit_te(test, inputs[0], primfunc_name_hint="is_nan")


def constant(node: ir.Node, index: int) -> int:
    value = node.inputs[index].const_value
    if value is None:
        raise CompileError(
            f"{node.op_type} '{node.name}': input {index} must be a constant; export it as one"
        )
    return int(value.numpy().reshape(-1)[0])
