"""LSTM, GRU and RNN against ONNX Runtime: directions, states, outputs and layouts."""

import itertools

import numpy as np
import pytest

from sparsec.compiler.errors import CompileError

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def layer(
    op,
    single_op,
    *,
    steps=7,
    batch=2,
    inputs=5,
    hidden=17,
    outputs=None,
    state=False,
    bias=True,
    sequence=None,
    peepholes=None,
    constants=("w", "r", "b"),
    **attributes,
):
    """``(model, feeds)`` of one recurrent node."""
    rng = np.random.default_rng(steps * 31 + hidden)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * hidden

    def array(*shape):
        return (rng.standard_normal(shape) / 2).astype(np.float32)

    batch_first = attributes.get("layout", 0)
    start = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    given = {
        "x": array(batch, steps, inputs) if batch_first else array(steps, batch, inputs),
        "w": array(directions, rows, inputs),
        "r": array(directions, rows, hidden),
        "b": array(directions, 2 * rows) if bias else None,
        "lengths": None if sequence is None else np.array(sequence, np.int32),
        "h": array(*start) if state else None,
    }
    if op == "LSTM":
        given["c"] = array(*start) if state else None
        given["p"] = array(directions, 3 * hidden) if peepholes else None
    names = outputs or (("y", "y_h", "y_c") if op == "LSTM" else ("y", "y_h"))
    model = single_op(op, given, constants=constants, outputs=names, hidden_size=hidden, **attributes)
    return model, {k: v for k, v in given.items() if v is not None and k not in constants}


@pytest.mark.parametrize("state", [False, True], ids=["", "states"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_directions(op, direction, state, single_op, same_as_ort):
    same_as_ort(*layer(op, single_op, direction=direction, state=state))


@pytest.mark.parametrize(
    ("steps", "batch", "hidden"), [(1, 1, 1), (1, 3, 33), (17, 1, 7), (7, 5, 16), (3, 33, 4)]
)
@pytest.mark.parametrize("op", GATES)
def test_sizes(op, steps, batch, hidden, single_op, same_as_ort):
    same_as_ort(*layer(op, single_op, steps=steps, batch=batch, hidden=hidden, inputs=hidden, state=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("state", "reset"), list(itertools.product([False, True], [0, 1])))
def test_gru_resets(direction, state, reset, single_op, same_as_ort):
    same_as_ort(*layer("GRU", single_op, direction=direction, state=state, linear_before_reset=reset))


@pytest.mark.parametrize("op", GATES)
def test_without_bias(op, single_op, same_as_ort):
    same_as_ort(*layer(op, single_op, bias=False))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("op", "outputs"),
    [
        ("LSTM", ("y",)),
        ("LSTM", ("", "y_h")),
        ("LSTM", ("", "", "y_c")),
        ("LSTM", ("y", "", "y_c")),
        ("GRU", ("", "y_h")),
        ("GRU", ("y",)),
        ("RNN", ("", "y_h")),
    ],
    ids=str,
)
def test_some_outputs(op, outputs, direction, single_op, same_as_ort):
    same_as_ort(*layer(op, single_op, outputs=outputs, direction=direction))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_batch_first(op, direction, single_op, run_graph, ort_run, agree):
    """ONNX Runtime lacks this layout: its answer is that of the other one, transposed."""
    model, feeds = layer(op, single_op, layout=1, direction=direction, state=True)
    time_first, _ = layer(op, single_op, direction=direction, state=True)
    expected = ort_run(
        time_first.SerializeToString(), {name: array.swapaxes(0, 1) for name, array in feeds.items()}
    )
    expected = {
        name: array.transpose(2, 0, 1, 3) if name == "y" else array.swapaxes(0, 1)
        for name, array in expected.items()
    }
    agree(run_graph(model, feeds).outputs, expected)


@pytest.mark.parametrize("op", GATES)
def test_clip(op, single_op, same_as_ort):
    same_as_ort(*layer(op, single_op, clip=0.3))


def test_activations_by_name(single_op, same_as_ort):
    same_as_ort(*layer("LSTM", single_op, activations=["Sigmoid", "Tanh", "Tanh"]))
    same_as_ort(*layer("GRU", single_op, direction="bidirectional", activations=["Sigmoid", "Tanh"] * 2))


def test_sequence_lengths_that_are_the_length(single_op, same_as_ort):
    """Exporters hand over the full length of every sequence as a constant."""
    same_as_ort(*layer("LSTM", single_op, sequence=[7, 7], constants=("w", "r", "b", "lengths")))


BEYOND = "peepholes, input_forget, sequences of unequal length, or other activations than the default"

REFUSED = {
    "activations": (
        {"activations": ["Sigmoid", "Relu", "Tanh"]},
        BEYOND,
    ),
    "sequence_lens": ({"sequence": [7, 3]}, BEYOND),
    "peepholes": ({"peepholes": True}, BEYOND),
    "input_forget": ({"input_forget": 1}, BEYOND),
    "weights": (
        {"constants": ("r", "b")},
        r"input 1 \('w'\) must be a constant; export the model with its weights",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, single_op, run_graph):
    options, text = REFUSED[case]
    model, feeds = layer("LSTM", single_op, **options)
    with pytest.raises(CompileError, match=f"LSTM 'node'.*: .*{text}") as caught:
        run_graph(model, feeds)
    assert "\n" not in str(caught.value)


def test_tagger(text_graph, same_as_ort):
    """Embedding, two bidirectional layers as torch writes them, and a matrix product."""
    import onnx

    rng = np.random.default_rng(1)
    model = text_graph(
        """(int64[5,2] ids) => (y) {
            e = Gather(words, ids)
            a, b, c = LSTM <hidden_size = 9, direction = "bidirectional"> (e, w1, r1, b1)
            f = Transpose <perm = [0, 2, 1, 3]> (a)  g = Reshape(f, flat)
            h, i, j = LSTM <hidden_size = 9, direction = "bidirectional"> (g, w2, r2, b2)
            k = Transpose <perm = [0, 2, 1, 3]> (h)  l = Reshape(k, flat)  y = MatMul(l, head) }"""
    )
    shapes = {"words": (33, 7), "w1": (2, 36, 7), "r1": (2, 36, 9), "b1": (2, 72), "w2": (2, 36, 18)}
    shapes |= {"r2": (2, 36, 9), "b2": (2, 72), "head": (18, 4)}
    arrays = {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}
    arrays["flat"] = np.array([0, 0, -1])
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    same_as_ort(
        onnx.shape_inference.infer_shapes(model, data_prop=True), {"ids": rng.integers(0, 33, (5, 2))}
    )
