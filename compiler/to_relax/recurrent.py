"""LSTM, GRU and RNN: one matrix product for the whole sequence, then one kernel that walks through time."""

import numpy as np
import onnx_ir as ir
from tvm import relax

from sparsec.compiler.errors import CompileError
from sparsec.compiler.to_relax.activations import reshaped
from sparsec.compiler.to_relax.linear import attribute, contract, pattern_of
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.recurrent import GATES, Recurrent, check


def lstm(importer, node: ir.Node, inputs):
    return layer(importer, node, inputs, "lstm")


def gru(importer, node: ir.Node, inputs):
    return layer(importer, node, inputs, "gru")


def rnn(importer, node: ir.Node, inputs):
    return layer(importer, node, inputs, "rnn")


def layer(importer, node: ir.Node, inputs, kind: str):
    """All directions of one layer, put together as ONNX orders its outputs."""
    inputs = inputs + [None] * (8 - len(inputs))
    batch_first = bool(attribute(node, "layout", 0))
    x = relax.op.permute_dims(inputs[0], [1, 0, 2]) if batch_first else inputs[0]
    x = importer.bb.normalize(x)
    directions = attribute(node, "direction", "forward")
    reverses = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[directions]
    results = [
        direction(importer, node, inputs, kind, x, index, reverse, batch_first)
        for index, reverse in enumerate(reverses)
    ]
    steps, batch, hidden = (int(d) for d in results[0][0].ty.shape)
    outputs = []
    for index in range(len(node.outputs)):
        shape = [steps, 1, batch, hidden] if index == 0 else [1, batch, hidden]
        parts = [reshaped(importer, result[index], shape) for result in results]
        joined = parts[0] if len(parts) == 1 else relax.op.concat(parts, axis=1 if index == 0 else 0)
        if batch_first:
            joined = relax.op.permute_dims(joined, [2, 0, 1, 3] if index == 0 else [1, 0, 2])
        outputs.append(importer.bb.emit(joined))
    return outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)


def direction(importer, node: ir.Node, inputs, kind: str, x, index: int, reverse: bool, batch_first: bool):
    """``(Y [T, B, H], Y_h [B, H], Y_c [B, H] for an LSTM)`` of one direction."""
    weight, recurrence = (constant(node, position)[index] for position in (1, 2))
    steps, batch, _ = (int(d) for d in x.ty.shape)
    hidden = recurrence.shape[1]
    columns = GATES[kind] * hidden
    per_direction = len(_ACTIVATION_COUNT[kind])
    names = list(node.attributes["activations"].as_strings()) if "activations" in node.attributes else []
    names = names[index * per_direction : (index + 1) * per_direction]
    try:
        # sequence_lens, where ingest let it through, is the whole length everywhere
        check(kind, names, False, inputs[7] is not None, bool(attribute(node, "input_forget", 0)))
        spec = Recurrent(
            kind,
            steps,
            batch,
            hidden,
            reverse,
            kind == "gru" and bool(attribute(node, "linear_before_reset", 0)),
            float(attribute(node, "clip", 0.0)),
        )
    except ValueError as error:
        raise CompileError(f"{node.op_type} '{node.name}': {error}") from error
    bias = constant(node, 3)[index] if inputs[3] is not None else np.zeros(2 * columns, np.float32)
    own, carried = bias[:columns].copy(), bias[columns:].copy()
    apart = []
    if spec.linear_before_reset:
        apart = [importer.weight(carried[2 * hidden :], node)]
        carried[2 * hidden :] = 0
    gemm = Gemm((steps, batch), weight.shape[1], columns, pattern_of(node))
    projected = contract(importer, node, x, gemm, np.ascontiguousarray(weight))
    projected = importer.bb.emit(relax.op.add(projected, relax.const(own + carried)))
    states = [initial(importer, inputs[5], index, batch, hidden, batch_first)]
    if kind == "lstm":
        states.append(initial(importer, inputs[6], index, batch, hidden, batch_first))
    packed = importer.weight(np.ascontiguousarray(recurrence.T), node)
    shapes = [list(shape) for shape in spec.outputs]
    results = importer.kernel(kind, spec.prim_func(), [projected, packed, *apart, *states], shapes)
    return [importer.bb.emit(relax.TupleGetItem(results, i)) for i in range(len(shapes))]


_ACTIVATION_COUNT = {"lstm": "fgh", "gru": "fg", "rnn": "f"}  # ONNX's names of the activation functions


def initial(importer, state, index: int, batch: int, hidden: int, batch_first: bool):
    """The direction's initial state as ``[B, H]``, zeros where none is given."""
    if state is None:
        return relax.const(np.zeros((batch, hidden), np.float32))
    if batch_first:
        state = importer.bb.emit(relax.op.permute_dims(state, [1, 0, 2]))
    one = relax.op.strided_slice(state, axes=[0], begin=[index], end=[index + 1])
    return importer.bb.emit(relax.op.reshape(importer.bb.emit(one), [batch, hidden]))


def constant(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    if value.const_value is None:
        raise CompileError(
            f"{node.op_type} '{node.name}': input {index} ('{value.name}') must be a constant; "
            "export the model with its weights"
        )
    return value.const_value.numpy().astype(np.float32, copy=False)
