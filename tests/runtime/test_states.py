"""Models that keep state: step by step against ONNX Runtime, snapshots, what --state refuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.compiler.errors import CompileError
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.plan import Port
from sparsec.compiler.request import CompileRequest
from sparsec.compiler.states import resolve
from sparsec.runtime import InputError, RunError

STEPS, UNITS, WINDOW = 1, 7, 5


def recurrent() -> onnx.ModelProto:
    """One step of an LSTM, attention over the last WINDOW hidden states, and a count of the steps."""
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.standard_normal((1, 4 * UNITS, 3)) * 0.5,
        "r": rng.standard_normal((1, 4 * UNITS, UNITS)) * 0.5,
        "b": rng.standard_normal((1, 8 * UNITS)) * 0.5,
    }
    constants = [numpy_helper.from_array(a.astype("float32"), name) for name, a in weights.items()]
    for name, value in {"one": [1], "end": [1 << 30], "axis": [1]}.items():
        constants.append(numpy_helper.from_array(np.array(value, "int64"), name))
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b", "", "past_h", "past_c"], ["", "present_h", "present_c"],
                         hidden_size=UNITS),
        helper.make_node("Concat", ["past_cache", "present_h"], ["longer"], axis=1),
        helper.make_node("Slice", ["longer", "one", "end", "axis"], ["present_cache"]),
        helper.make_node("Transpose", ["present_cache"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["present_h", "keys"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["share"]),
        helper.make_node("MatMul", ["share", "present_cache"], ["y"]),
        helper.make_node("Add", ["past_count", "one"], ["present_count"]),
    ]  # fmt: skip
    floats = {"h": [1, 1, UNITS], "c": [1, 1, UNITS], "cache": [1, WINDOW, UNITS]}

    def ports(prefix):
        values = [helper.make_tensor_value_info(prefix + n, TensorProto.FLOAT, s) for n, s in floats.items()]
        return [*values, helper.make_tensor_value_info(prefix + "count", TensorProto.INT64, [1])]

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, 1, 3]), *ports("past_")]
    outputs = [*ports("present_"), helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, UNITS])]
    graph = helper.make_graph(nodes, "recurrent", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("recurrent") / "recurrent.onnx"
    onnx.save(recurrent(), path)
    return path


@pytest.fixture(scope="module")
def artifact(source):
    out = source.with_suffix(".sparsec")
    states = {"past_*": "present_*"}
    compile_model(CompileRequest(str(source), str(out), target="native", states=states))
    return out


class Reference:
    """ONNX Runtime, its outputs fed back by hand."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.states = {
            i.name: np.zeros(i.shape, "int64" if "int64" in i.type else "float32")
            for i in self.session.get_inputs()
            if i.name != "x"
        }

    def __call__(self, x):
        names = [o.name for o in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, {"x": x, **self.states}), strict=True))
        self.states = {name: found[name.replace("past", "present")] for name in self.states}
        return found["y"]


def close(found, wanted):
    return np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max() + 1e-6


def xs(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, STEPS, 1, 3)).astype("float32")


def test_step_by_step(source, artifact):
    """More steps than the window is long; y and every state, each step."""
    reference = Reference(source)
    with sparsec.load(artifact) as model:
        assert [t.name for t in model.inputs] == ["x"] and [t.name for t in model.outputs] == ["y"]
        assert [t.name for t in model.states] == ["past_h", "past_c", "past_cache", "past_count"]
        for step, x in enumerate(xs(12)):
            wanted, found = reference(x), model(x)
            assert list(found) == ["y"] and close(found["y"], wanted)
            states = model.snapshot()
            assert states["past_count"] == [step + 1]
            assert all(close(states[name], value) for name, value in reference.states.items())


def test_reset_and_restore(artifact):
    with sparsec.load(artifact) as model:
        first = [model(x)["y"] for x in xs(3)]
        middle = model.snapshot()
        rest = [model(x)["y"] for x in xs(4, seed=1)]
        kept = {name: value.copy() for name, value in middle.items()}
        model.reset()
        assert all((model(x)["y"] == y).all() for x, y in zip(xs(3), first, strict=True))
        assert all((middle[name] == value).all() for name, value in kept.items())  # a copy
        other = model.context()
        other.restore(middle)
        assert all((other(x)["y"] == y).all() for x, y in zip(xs(4, seed=1), rest, strict=True))
        assert model.snapshot()["past_count"] == [3]  # contexts do not share states


def test_wrong_snapshots(artifact):
    with sparsec.load(artifact) as model:
        good = model.snapshot()
        with pytest.raises(InputError, match=r"one array for each state \(past_h, .*\), found past_h"):
            model.restore({"past_h": good["past_h"]})
        with pytest.raises(InputError, match=r"'past_count': wanted int64\[1\], found float64\[1\]"):
            model.restore({**good, "past_count": np.ones(1)})
        with pytest.raises(InputError, match=r"a model with states \('past_h'\) runs step by step"):
            model.submit(xs(1)[0])
        with pytest.raises(InputError, match="no input is called 'past_h'"):
            model({"x": xs(1)[0], "past_h": good["past_h"]})
    with pytest.raises(RunError, match="closed"):
        model.snapshot()


def test_a_model_without_states(tiny):
    with sparsec.load(tiny.path) as model:
        assert model.states == () and model.snapshot() == {}
        model.reset()
        model.restore({})
        with pytest.raises(InputError, match=r"one array for each state \(none\), found h"):
            model.restore({"h": 1})


INPUTS = tuple(Port(n, "float32", (2,), (2,)) for n in ("x", "past_a", "past_b"))
OUTPUTS = (
    Port("present_a", "float32", (2,), (2,)),
    Port("present_b", "float32", (2,), (2,)),
    Port("longer", "float32", (3,), (3,)),
    Port("other", "int64", (2,), (2,)),
)


def test_resolved():
    assert resolve({}, INPUTS, OUTPUTS) == {}
    pairs = {"past_a": "present_a", "past_b": "present_b"}
    assert resolve({"past_*": "present_*"}, INPUTS, OUTPUTS) == pairs
    assert list(resolve({"past_b": "present_b", "past_a": "present_a"}, INPUTS, OUTPUTS)) == list(pairs)
    assert resolve({"past_a": "present_b"}, INPUTS, OUTPUTS) == {"past_a": "present_b"}


@pytest.mark.parametrize(
    ("asked", "text"),
    {
        "stars": ({"past_*": "present_a"}, r"--state 'past_\*=present_a': write one \* on both sides"),
        "two": ({"p*_*": "p*_*"}, r"write one \* on both sides, or none"),
        "input": ({"pst_a": "present_a"}, "no input 'pst_a'; its inputs: x, .* Did you mean 'past_a'?"),
        "output": ({"past_*": "presnt_*"}, "no output 'presnt_a'; .* Did you mean 'present_a'?"),
        "twice": ({"past_a": "present_a", "past_b": "present_a"}, "'past_b' or 'present_a' is already part"),
        "shape": ({"x": "longer"}, r"'x' is float32\[2\] and output 'longer' is float32\[3\]: a state keeps"),
        "dtype": ({"x": "other"}, r"output 'other' is int64\[2\]"),
    }.values(),
)
def test_refused(asked, text):
    with pytest.raises(CompileError, match=text):
        resolve(asked, INPUTS, OUTPUTS)


@pytest.mark.slow
@pytest.mark.qemu("aarch64")
def test_on_another_machine(source, tmp_path):
    """The runner for emulators sets states and gives them back, so that they are compared like outputs."""
    request = CompileRequest(str(source), str(tmp_path / "a"), target="arm", states={"past_*": "present_*"})
    receipt = compile_model(request)["receipt"]
    assert receipt["emulated"] == ["neon"] and "present_cache" in receipt["max_error"]
