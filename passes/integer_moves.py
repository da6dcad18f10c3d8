"""Integers instead of reals where values are only moved, and one kind of integers.

    Reshape(q) -> DequantizeLinear                     =  DequantizeLinear -> Reshape
    QuantizeLinear to int8, zero point z               =  QuantizeLinear to uint8, zero point z + 128
    Reshape(x) -> QuantizeLinear                       =  QuantizeLinear(x) -> Reshape
    QuantizeLinear(DequantizeLinear(q)), one scale     =  q
    Reshape(DequantizeLinear(q))                       =  DequantizeLinear(Reshape(q))

and the same with every operator of ``MOVES``; the maximum of a MaxPool is that of the integers, too, since
scales are positive.  All are exact.  The order of the steps: everything that moves is brought to reals,
int8 becomes uint8, and everything that can is brought back to integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import const_array, is_op, remove_dead
from sparsec.passes.quantised import (
    SIGNED,
    Quantised,
    constant_weight,
    dequantised,
    quantiser,
    sole_reader,
    unsigned,
)
from sparsec.passes.writer import Writer, replace_value

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Expand", "MaxPool")
#: Moves that leave elements out, so that what is quantised behind them stays there.
PICKS = ("Slice", "Gather", "Split")


def to_reals(model: ir.Model, wanted: Callable[[ir.Node], bool] = lambda node: True) -> None:
    """Moves of integers in front of a ``wanted`` DequantizeLinear become moves of reals behind it."""
    for node in reversed(list(model.graph)):
        if node.graph is None or dequantised(node.outputs[0]) is None or not wanted(node):
            continue
        while is_op(move := node.inputs[0].producer(), *MOVES, "Slice") and len(move.outputs) == 1:
            if move.inputs[0].dtype != node.inputs[0].dtype or const_array(move.inputs[0]) is not None:
                break
            write, result = Writer(model, node), node.outputs[0]
            source = move.inputs[0]
            real = write.op("DequantizeLinear", [source, *node.inputs[1:]], result.dtype, source.shape)
            moved = write.op(
                move.op_type, [real, *move.inputs[1:]], result.dtype, result.shape, dict(move.attributes)
            )
            replace_value(result, moved)
            remove_dead([result])
            node = real.producer()


def for_attention(node: ir.Node) -> bool:
    """Whether products of two activations alone read ``node``: they take operands as they lie in memory."""
    return all(is_op(use.node, "MatMul") for use in node.outputs[0].uses())


def to_unsigned(model: ir.Model) -> None:
    """Every int8 with one scale becomes uint8, where it is made."""
    made: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.graph is None:
            continue
        out = node.outputs[0]
        found = dequantised(out) or quantiser(node)
        if found is None or found.value.dtype != ir.DataType.INT8 or _weight_only(node):
            continue
        if found.value not in made:
            made[found.value] = _unsigned(model, found.value, Writer(model, node))
        if out is not found.value:
            replace_value(out, dequantise(Writer(model, node), unsigned(found, made[found.value]), out))
        remove_dead([out])


def _weight_only(node: ir.Node) -> bool:
    """Whether a constant is read as reals by what multiplies weights, which stay int8."""
    return (
        is_op(node, "DequantizeLinear")
        and const_array(node.inputs[0]) is not None
        and all(
            is_op(use.node, "MatMul", "Gemm", "Conv", "ConvTranspose", "Transpose")
            for use in node.outputs[0].uses()
        )
    )


def _unsigned(model: ir.Model, value: ir.Value, write: Writer) -> ir.Value:
    """``value`` (int8) plus 128, as uint8."""
    array = const_array(value)
    if array is not None:
        return write.constant((array.astype(np.int16) + 128).astype(np.uint8), "unsigned")
    made = quantiser(value.producer())
    if made is None:
        return shifted(write, value, ir.DataType.UINT8, 128)
    node = value.producer()
    write = Writer(model, node)
    result = quantise(write, node.inputs[0], unsigned(made, value), value.shape)
    others = [use for use in value.uses() if dequantised(use.node.outputs[0]) is None]
    if others or value.is_graph_output():
        signed = shifted(write, result, ir.DataType.INT8, -128)
        for reader, index in others:
            reader.replace_input_with(index, signed)
        if value.is_graph_output():
            replace_value(value, signed)
    return result


def shifted(write: Writer, value: ir.Value, dtype: ir.DataType, by: int) -> ir.Value:
    wide = write.op("Cast", [value], ir.DataType.INT32, value.shape, {"to": int(ir.DataType.INT32)})
    moved = write.op("Add", [wide, write.constant(np.int32(by), "offset")], ir.DataType.INT32, value.shape)
    return write.op("Cast", [moved], dtype, value.shape, {"to": int(dtype)})


def to_integers(model: ir.Model) -> None:
    """Moves between quantised values act on integers; what is quantised as it was before is left alone."""
    for node in reversed(list(model.graph)):
        _lift(model, node)
    for node in list(model.graph):
        if node.graph is not None:
            _cancel(node)
            _sink(model, node)
    for node in list(model.graph):
        if node.graph is not None:
            _cancel(node)


def _lift(model: ir.Model, node: ir.Node) -> None:
    """QuantizeLinear behind a move: in front of it, on each of its inputs."""
    made = quantiser(node)
    while made is not None and made.value.dtype == ir.DataType.UINT8:
        move = node.inputs[0].producer()
        if not is_op(move, *MOVES, "Concat") or len(move.outputs) != 1:
            return
        if sole_reader(move.outputs[0]) is not node:
            return
        data = move.inputs if move.op_type == "Concat" else move.inputs[:1]
        if any(const_array(value) is not None for value in data):
            return
        if move.op_type == "Transpose" and is_op(data[0].producer(), "MatMul"):
            return  # which writes its result in that order, unless something stands between
        write, old = Writer(model, move), node.outputs[0]
        integers = [quantise(write, value, made, value.shape) for value in data]
        moved = write.op(
            move.op_type,
            [*integers, *move.inputs[len(integers) :]],
            old.dtype,
            old.shape,
            dict(move.attributes),
        )
        replace_value(old, moved)
        remove_dead([old])
        if len(integers) > 1:
            for value in integers:
                _lift(model, value.producer())
            return
        node, made = integers[0].producer(), quantiser(integers[0].producer())


def _cancel(node: ir.Node) -> None:
    """QuantizeLinear of what was dequantised from the very integers that it makes."""
    made = quantiser(node)
    given = None if made is None else dequantised(node.inputs[0])
    if given is not None and made.like(given):
        out = node.outputs[0]
        if out.is_graph_output() and (given.value.is_graph_output() or given.value.producer() is None):
            return
        replace_value(out, given.value)
        remove_dead([out])


def _sink(model: ir.Model, node: ir.Node) -> None:
    """DequantizeLinear in front of a move: behind it."""
    if not is_op(node, *MOVES, *PICKS, "Concat"):
        return
    data = list(node.inputs if node.op_type == "Concat" else node.inputs[:1])
    given = [dequantised(value) for value in data]
    if any(g is None or g.value.dtype != ir.DataType.UINT8 for g in given):
        return
    if any((g.scale, g.zero) != (given[0].scale, given[0].zero) for g in given):
        return
    constant = any(const_array(g.value) is not None for g in given)
    if constant if node.op_type not in PICKS else not (constant or _wanted(node)):
        return
    if node.op_type not in (*PICKS, "MaxPool") and not _wanted(node):
        return  # attention reads reals where they lie, behind Transpose and Reshape
    write = Writer(model, node)
    outs = [
        ir.Value(name=f"{out.name}~integers", type=ir.TensorType(ir.DataType.UINT8), shape=out.shape)
        for out in node.outputs
    ]
    moved = ir.node(
        node.op_type,
        [*(g.value for g in given), *node.inputs[len(given) :]],
        dict(node.attributes),
        outputs=outs,
        name=f"{node.name}~integers",
    )
    node.graph.insert_before(node, moved)
    for old, new in zip(node.outputs, outs, strict=True):
        stored = Quantised(new, given[0].scale, given[0].zero, given[0].signed)
        replace_value(old, dequantise(write, stored, old))
    remove_dead(list(node.outputs))


def _wanted(move: ir.Node) -> bool:
    """Whether integers are read behind ``move``, at once or through further moves."""
    for value in move.outputs:
        for use in value.uses():
            if is_op(use.node, "QuantizeLinear"):
                return True
            if is_op(use.node, "MatMul", "Gemm", "Conv") and use.idx == 0:
                return constant_weight(use.node.inputs[1]) is not None
            if is_op(use.node, *MOVES, *PICKS, "Concat") and _wanted(use.node):
                return True
    return False


# What the other steps write ----------------------------------------------------------------------------


def quantise(write: Writer, value: ir.Value, made: Quantised, shape) -> ir.Value:
    """``value`` as uint8 with the scale and zero point of ``made``."""
    scale, zero = write.constant(made.scale, "scale"), write.constant(np.uint8(made.zero), "zero")
    out = write.op("QuantizeLinear", [value, scale, zero], ir.DataType.UINT8, shape)
    _mark(out, made)
    return out


def dequantise(write: Writer, stored: Quantised, like: ir.Value) -> ir.Value:
    """The reals of ``stored``, in the shape of ``like``."""
    scale, zero = write.constant(stored.scale, "scale"), write.constant(np.uint8(stored.zero), "zero")
    out = write.op("DequantizeLinear", [stored.value, scale, zero], ir.DataType.FLOAT, like.shape)
    _mark(out, stored)
    return out


def _mark(value: ir.Value, quantised: Quantised) -> None:
    if quantised.signed:
        value.producer().metadata_props[SIGNED] = "1"
