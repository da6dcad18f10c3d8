"""What other grids for activations would change: MiniLM in int8, simulated in ONNX Runtime.

    python -m benchmarks.accuracy.activations [--texts 64]

Weights are those of ``sparsec quantize`` throughout. *per tensor* is what it writes: uint8 with one range
for all inputs. *per token*: each row of a layer's input has the range of its own values, found at run time.
*float*: activations are not rounded, which is as near as any grid comes. The others round the probabilities
behind softmax as well, which sparsec leaves in float32: *uniform*, steps of 1/255; *log2*, powers of two down
to 2^-15 in 4 bits (RepQuant), *log sqrt 2* with half the steps in 5 bits. Results are added to
``benchmarks/results/accuracy.json``.
"""

import argparse
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import add_constant, const_array, is_op, remove_dead

from .quantised import quantised, sentences
from .store import add


class Tape:
    """Appends nodes in front of one, constants as needed."""

    def __init__(self, model: ir.Model, before: ir.Node):
        self.model, self.before = model, before

    def __call__(self, op: str, *inputs: ir.Value | float, **attributes) -> ir.Value:
        values = [self._value(value) for value in inputs]
        node = ir.node(op, values, attributes)
        node.outputs[0].name = f"simulated_{id(node)}"
        self.before.graph.insert_before(self.before, node)
        return node.outputs[0]

    def _value(self, value: ir.Value | float | list[int]) -> ir.Value:
        if isinstance(value, ir.Value):
            return value
        return add_constant(self.model, "simulated", np.array(value, np.float32))


def unrounded(model: ir.Model, round_: Callable[[Tape, ir.Value], ir.Value] | None = None) -> None:
    """Activations as they are, or as `round_` has them, in front of every layer."""
    for node in [n for n in model.graph if is_op(n, "DequantizeLinear")]:
        made = node.inputs[0].producer()
        if const_array(node.inputs[0]) is None and is_op(made, "QuantizeLinear"):
            x = made.inputs[0]
            x = round_(Tape(model, node), x) if round_ else x
            ir.convenience.replace_all_uses_with(node.outputs[0], x)
            remove_dead(node.outputs)


def by_token(tape: Tape, x: ir.Value) -> ir.Value:
    """uint8 over the range of each row, which holds 0."""
    axes = add_constant(tape.model, "axes", np.array([-1]))
    low = tape("Min", tape("ReduceMin", x, axes), 0.0)
    high = tape("Max", tape("ReduceMax", x, axes), 0.0)
    scale = tape("Max", tape("Div", tape("Sub", high, low), 255.0), 1e-30)
    zero = tape("Round", tape("Div", tape("Neg", low), scale))
    steps = tape("Add", tape("Round", tape("Div", x, scale)), zero)
    return tape("Mul", tape("Sub", tape("Clip", steps, 0.0, 255.0), zero), scale)


def probabilities(round_: Callable[[Tape, ir.Value], ir.Value]) -> Callable[[ir.Model], None]:
    """The change that has what reads a softmax read it as `round_` has it."""

    def change(model: ir.Model) -> None:
        for node in [n for n in model.graph if is_op(n, "Softmax")]:
            for reader, index in list(node.outputs[0].uses()):
                reader.replace_input_with(index, round_(Tape(model, reader), node.outputs[0]))

    return change


def uniform(tape: Tape, p: ir.Value) -> ir.Value:
    return tape("Div", tape("Round", tape("Mul", p, 255.0)), 255.0)


def logarithmic(per_octave: float, most: float) -> Callable[[Tape, ir.Value], ir.Value]:
    """2^(-q / per_octave), q the nearest of 0 to `most`, whose last stands for 0."""

    def round_(tape: Tape, p: ir.Value) -> ir.Value:
        octaves = tape("Mul", tape("Log", tape("Max", p, 1e-30)), -per_octave / float(np.log(2)))
        q = tape("Clip", tape("Round", octaves), 0.0, most)
        power = tape("Exp", tape("Mul", q, -float(np.log(2)) / per_octave))
        return tape("Where", tape("Equal", q, most), 0.0, power)

    return round_


WAYS: dict[str, Callable[[ir.Model], None]] = {
    "per tensor": lambda model: None,
    "per token": lambda model: unrounded(model, by_token),
    "float": unrounded,
    "per tensor, softmax uniform": probabilities(uniform),
    "per tensor, softmax log2": probabilities(logarithmic(1.0, 15.0)),
    "per tensor, softmax log sqrt 2": probabilities(logarithmic(2.0, 31.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=64, help="to calibrate with")
    arguments = parser.parse_args()
    with sentences(arguments.texts) as (dense, data, score):
        made, _, _ = quantised(dense, data)
        for way, change in WAYS.items():
            model = made.clone()
            change(model)
            found = score(model)
            add("activations", {"network": "minilm", "way": way, "texts": arguments.texts, **found})
            print(way, found, flush=True)


if __name__ == "__main__":
    main()
