"""The whole road: what is published agrees with ONNX Runtime, is the same every time, or is not published."""

import json
import zipfile

import numpy as np
import onnx
import pytest

from sparsec.compiler import pipeline
from sparsec.compiler.errors import CompileError
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest, cpu_levels, native_level
from sparsec.runtime import load

RNG = np.random.default_rng(31)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))


def two_of_four(rows, columns, block=32):
    weight = RNG.standard_normal((rows, columns)).astype(np.float32)
    for column in range(0, columns, block):
        for row in range(0, rows, 4):
            weight[row + RNG.permutation(4)[:2], column : column + block] = 0
    return weight


@pytest.fixture
def saved(tmp_path, text_graph):
    """``saved(text, **constants) -> path`` of an ONNX file."""

    def write(text: str, **constants):
        proto = text_graph(text)
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()
        )
        path = tmp_path / "m.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return write


@pytest.fixture
def network(saved):
    """Two layers with a 2:4 weight, one dense."""
    return saved(
        "(float[7,64] x) => (y) { a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) y = MatMul(b, w3) }",
        w1=two_of_four(64, 64),
        w2=two_of_four(64, 64),
        w3=RNG.standard_normal((64, 5)).astype(np.float32),
    )


@pytest.fixture
def compiled(tmp_path):
    """``compiled(path, **options) -> (report, path of the artifact)``."""

    def run(path, name="m.sparsec", *, target="native", **options):
        out = tmp_path / name
        return compile_model(CompileRequest(str(path), str(out), target=target, **options)), out

    return run


def agrees(path, out, feeds, ort_run, agree):
    with load(out) as model:
        found = model(feeds)
    agree(found, ort_run(path, feeds))


# Numbers -----------------------------------------------------------------------------------------------


def test_x86_runs_at_both_levels(network, compiled, ort_run, agree, monkeypatch):
    report, out = compiled(network, target="x86")
    assert report["levels"] == ["v4", "v3"]
    x = RNG.standard_normal((7, 64)).astype(np.float32)
    agrees(network, out, {"x": x}, ort_run, agree)
    _, v3 = compiled(network, "v3.sparsec", target="x86:v3")
    agrees(network, v3, {"x": x}, ort_run, agree)
    assert zipfile.ZipFile(v3).namelist() == ["manifest.json", "model.v3.so", "weights.bin"]


SMALL = {
    "integers": (
        "(int64[5] i, float[7,3] t) => (g, j) { g = Gather(t, i) j = Add(i, i) }",
        {"i": np.array([0, 6, 3, 3, 1]), "t": RNG.standard_normal((7, 3)).astype(np.float32)},
    ),
    "booleans": (
        "(bool[2,3] m, bool[3] n, float[2,3] x) => (y, k) { k = And(m, n) y = Where(k, x, x) }",
        {
            "m": RNG.integers(0, 2, (2, 3)) > 0,
            "n": np.array([True, False, True]),
            "x": np.ones((2, 3), np.float32),
        },
    ),
    "scalars": (
        "(float a, float[3] b, int64 n) => (y, z, k) { y = Mul(a, b) z = Neg(a) k = Add(n, n) }",
        {"a": np.array(3, np.float32), "b": np.arange(3, dtype=np.float32), "n": np.array(2)},
    ),
    "an output that is an input": (
        "(float[3] x) => (float[3] x, y) { y = Neg(x) }",
        {"x": np.arange(3, dtype=np.float32)},
    ),
    "an output that is two": (
        "(float[3] x) => (y, z, w) { y = Neg(x) z = Identity(y) w = Identity(x) }",
        {"x": np.arange(3, dtype=np.float32)},
    ),
    "an output that is reshaped": (
        "(float[6] x) => (y, z) { y = Neg(x) s = Constant <value_ints = [2, 3]> () z = Reshape(y, s) }",
        {"x": np.arange(6, dtype=np.float32)},
    ),
    "an input that is reshaped": (
        "(float[6] x) => (z) { s = Constant <value_ints = [2, 3]> () z = Reshape(x, s) }",
        {"x": np.arange(6, dtype=np.float32)},
    ),
    "an output that is constant": (
        """(float[3] x) => (y, c, s) {
            y = Neg(x)  c = Constant <value_floats = [1.0, 2.0]> ()  s = Shape(x) }""",
        {"x": np.arange(3, dtype=np.float32)},
    ),
    "one constant twice": (
        """(float[3] x) => (y, c, d) {
            y = Neg(x)  c = Constant <value_floats = [1.0, 2.0]> ()  d = Identity(c) }""",
        {"x": np.arange(3, dtype=np.float32)},
    ),
    "an input that nobody reads": (
        "(float[3] x, float[9] unused) => (y) { y = Neg(x) }",
        {"x": np.arange(3, dtype=np.float32), "unused": np.zeros(9, np.float32)},
    ),
    "an output read again": (
        "(float[3] x) => (y, z) { y = Exp(x) z = Softmax(y) }",
        {"x": np.arange(3, dtype=np.float32)},
    ),
    "doubles": (
        """(double[7,5] x) => (y) {
            c = Constant <value = double[5] {1.5, 2.5, 1e-9, 3.0, 1.0}> ()
            a = Mul(x, c)  y = Exp(a) }""",
        {"x": RNG.standard_normal((7, 5))},
    ),
    "long constants": (
        "(int64[3] i) => (y) { c = Constant <value = int64[3] {1099511627776, -1, 5}> () y = Add(i, c) }",
        {"i": np.array([1, 2, 3])},
    ),
    "bytes": (
        "(uint8[2,5] i, int8[2,5] j) => (y, z) { y = Cast <to = 1> (i) z = Cast <to = 7> (j) }",
        {
            "i": RNG.integers(0, 255, (2, 5)).astype(np.uint8),
            "j": RNG.integers(-128, 127, (2, 5)).astype(np.int8),
        },
    ),
    "halves": (
        "(float16[2,5] x) => (y) { a = Add(x, x) y = Softmax(a) }",
        {"x": RNG.standard_normal((2, 5)).astype(np.float16)},
    ),
}


@pytest.mark.parametrize("case", SMALL)
def test_small_models(case, saved, compiled, ort_run, agree):
    text, feeds = SMALL[case]
    path = saved(text)
    report, out = compiled(path)
    tolerance = {"relative": 2e-3} if case == "halves" else {}
    with load(out) as model:
        agree(model(feeds), ort_run(path, feeds), **tolerance)
        assert [info.name for info in model.inputs] == list(feeds)
    assert all(error["within"] for error in report["receipt"]["max_error"].values())


def test_outputs_do_not_share_memory(saved, compiled):
    _, out = compiled(saved("(float[3] x) => (float[3] x, y, z) { y = Neg(x) z = Identity(y) }"))
    x = np.arange(3, dtype=np.float32)
    with load(out) as model:
        found = model(x)
        found["y"][:] = 7
        assert (found["z"] == -x).all()
        found["x"][:] = 9
        assert x.tolist() == [0, 1, 2]
        assert (model(x)["y"] == -x).all()


# The report --------------------------------------------------------------------------------------------


def test_report(network, compiled):
    lines = []
    request = CompileRequest(str(network), str(network.with_suffix(".sparsec")), target="native")
    report = compile_model(request, log=lines.append)
    assert report["out"] == request.out
    assert report["size"] == network.with_suffix(".sparsec").stat().st_size
    assert report["target"] == "native" and report["levels"] == [native_level()]
    assert report["steps"] >= 3 and report["weights_bytes"] > 0 and report["arena_bytes"] > 0
    assert [name for name, _ in report["stages"]] == [
        line for line in lines if line in dict(report["stages"])
    ]
    assert report["seconds"] == pytest.approx(sum(seconds for _, seconds in report["stages"]), abs=0.01)
    assert [layer["pattern"] for layer in report["layers"]] == ["2:4x32", "2:4x32", "dense"]
    for layer in report["layers"]:
        assert layer["op"] == "MatMul"
        rows, columns = map(int, layer["shape"].split("x"))
        assert layer["dense_bytes"] == rows * columns * 4
        assert layer["kernel"] == report["choices"].get(layer["name"], "dense")
        if layer["kernel"] == "sparse":
            assert layer["dense_bytes"] / 2 <= layer["packed_bytes"] < 0.6 * layer["dense_bytes"]
    assert set(report["choices"]) == {layer["name"] for layer in report["layers"][:2]}
    receipt = report["receipt"]
    assert receipt["input"] == "random, seed 0"
    assert receipt["tolerance"] == {"relative": 1e-5, "absolute": 1e-6}
    assert receipt["max_error"]["y"]["within"] and 0 <= receipt["max_error"]["y"]["max_abs"] < 1e-3
    json.dumps(report)
    with load(report["out"]) as model:
        assert model.manifest["receipt"] == receipt
        assert model.manifest["choices"] == report["choices"]


def test_stages_are_told_before_they_run(network, compiled):
    lines = []
    compile_model(CompileRequest(str(network), str(network) + ".out", target="native"), log=lines.append)
    assert lines[0] == "read the model" and lines[-1] == "publish"


def test_without_the_check(network, compiled):
    report, out = compiled(network, verify=False)
    assert not report["receipt"]
    assert "check against ONNX Runtime" not in dict(report["stages"])
    with load(out) as model:
        assert not model.manifest["receipt"]


def test_calibration_data(network, compiled, tmp_path):
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((20, 64)).astype(np.float32))
    report, _ = compiled(network, calib=str(tmp_path / "data.npz"))
    assert report["receipt"]["input"] == "calibration data"


# The same every time -----------------------------------------------------------------------------------


def test_byte_identical(network, compiled, tmp_path):
    report, first = compiled(network, target="x86")
    (tmp_path / "choices.json").write_text(json.dumps(report["choices"]))
    again, second = compiled(network, "b.sparsec", target="x86", choices=str(tmp_path / "choices.json"))
    assert again["choices"] == report["choices"]
    assert first.read_bytes() == second.read_bytes()


def test_choices_decide(network, compiled, tmp_path):
    report, _ = compiled(network, sparsity="off")
    names = list(report["choices"])
    assert [layer["kernel"] for layer in report["layers"]] == ["dense"] * 3
    given = {names[0]: "sparse", names[1]: "dense"}
    (tmp_path / "choices.json").write_text(json.dumps({"choices": given}))
    report, _ = compiled(network, choices=str(tmp_path / "choices.json"))
    assert report["choices"] == given
    assert [layer["kernel"] for layer in report["layers"]] == ["sparse", "dense", "dense"]


def test_off_is_larger(network, compiled, tmp_path):
    off, _ = compiled(network, sparsity="off")
    names = list(off["choices"])
    (tmp_path / "choices.json").write_text(json.dumps(dict.fromkeys(names, "sparse")))
    on, _ = compiled(network, choices=str(tmp_path / "choices.json"))
    assert on["weights_bytes"] < 0.7 * off["weights_bytes"]


# Passes that change numbers ----------------------------------------------------------------------------


def test_inserted_sparsity_is_checked_against_itself(saved, compiled, ort_run):
    """The reference is the transformed model, not the source: pruning changes what is computed."""
    path = saved(
        "(float[7,64] x) => (y) { y = MatMul(x, w) }", w=RNG.standard_normal((64, 64)).astype(np.float32)
    )
    report, out = compiled(path, passes="nm{n=2,m=4,block=32}")
    assert report["layers"][0]["pattern"] == "2:4x32"
    x = RNG.standard_normal((7, 64)).astype(np.float32)
    with load(out) as model:
        assert np.abs(model(x)["y"] - ort_run(path, {"x": x})["y"]).max() > 0.1
        assert "nm{n=2,m=4" in model.manifest["passes"]


# Nothing wrong is published ----------------------------------------------------------------------------


@pytest.fixture
def wrong_kernels(monkeypatch):
    """Every activation that a Relu lets through comes out doubled."""
    from tvm import te, tirx

    from sparsec.compiler.to_relax.converters import CONVERTERS

    def doubled(importer, node, inputs):
        def value(x):
            return te.compute(x.shape, lambda *i: tirx.max(x(*i), tirx.const(0, x.dtype)) * 2, name="relu")

        return importer.bb.emit_te(value, inputs[0])

    monkeypatch.setitem(CONVERTERS, ("", "Relu"), doubled)


def test_wrong_numbers_are_not_published(network, compiled, tmp_path, wrong_kernels):
    out = tmp_path / "m.sparsec"
    out.write_bytes(b"what was there")
    before = set(tmp_path.iterdir())
    with pytest.raises(CompileError) as caught:
        compiled(network)
    text = str(caught.value)
    assert text.startswith("output 'y' of the kernels for ") and "\n" not in text
    assert text.endswith(
        "nothing was published. --dump-dir D keeps every stage, --no-verify publishes all the same"
    )
    assert out.read_bytes() == b"what was there"
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"cache"}


def test_wrong_numbers_on_request(network, compiled, wrong_kernels):
    report, out = compiled(network, verify=False)
    assert out.exists() and not report["receipt"]


def test_failure_at_the_last_moment(network, compiled, tmp_path, monkeypatch):
    out = tmp_path / "m.sparsec"
    out.write_bytes(b"what was there")
    real = pipeline.package.write_artifact

    def full(path, *arguments):
        if str(path) == str(out):
            raise CompileError("no space left")
        return real(path, *arguments)

    monkeypatch.setattr(pipeline.package, "write_artifact", full)
    with pytest.raises(CompileError, match="no space left"):
        compiled(network)
    assert out.read_bytes() == b"what was there"


# Requests ----------------------------------------------------------------------------------------------


def test_targets():
    assert cpu_levels("x86") == ("v4", "v3")
    assert [cpu_levels(f"x86:{level}") for level in ("v2", "v3", "v4")] == [("v2",), ("v3",), ("v4",)]
    assert cpu_levels("native") == (native_level(),)
    targets = (
        "x86, x86:v2, x86:v3, x86:v4, arm, arm:dot, arm:i8mm, arm:bf16, armv7, riscv64, riscv64:rvv, native"
    )
    for target in ("mips", "x86,mips", "mips,arm"):
        with pytest.raises(CompileError, match=f"unknown target 'mips'; choose of {targets}, several with"):
            cpu_levels(target)


def test_several_targets():
    """By architecture as named, each level once, the best first, since a loader takes the first that fits."""
    assert cpu_levels("x86,arm") == ("v4", "v3", "neon")
    assert cpu_levels("arm,x86:v2,x86") == ("neon", "v4", "v3", "v2")
    assert cpu_levels("riscv64,riscv64:rvv,x86:v3,x86:v3") == ("rv64gcv", "rv64gc", "v3")


def test_native_on_an_old_machine(monkeypatch):
    from sparsec.compiler import request

    monkeypatch.setattr(request.cpu, "features", lambda: set())
    with pytest.raises(
        CompileError, match=r"target 'native': this machine's CPU \(x86_64\) runs no level; name a target"
    ):
        native_level()


def test_native_elsewhere(monkeypatch):
    from sparsec.compiler import request

    monkeypatch.setattr(request.cpu, "features", lambda: set())
    monkeypatch.setattr(request.cpu, "architecture", lambda: "aarch64")
    assert native_level() == "neon"
    assert request.runnable(["v4", "v2", "neon", "rv64gc"]) == ["neon"]


def test_request_crosses_a_border():
    request = CompileRequest("a", "b", shapes={"x": (1, 2)}, dims={"n": 3}, sparsity="off", verify=False)
    assert CompileRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


# The dump ----------------------------------------------------------------------------------------------


def test_dump(network, compiled, tmp_path, ort_run, agree):
    folder = tmp_path / "dump folder" / "deep"
    compiled(network, dump_dir=str(folder))
    names = sorted(path.name for path in folder.iterdir())
    assert [name[:2] for name in names] == [f"{i + 1:02d}" for i in range(len(names))]
    assert {"01-ingested.onnx", "02-passes.onnx", "03-channels_last.onnx"} <= set(names)
    assert {name.split("-", 1)[1] for name in names if name.endswith(".txt")} >= {
        "relax.txt",
        "lowered.txt",
        "plan.txt",
    }
    x = RNG.standard_normal((7, 64)).astype(np.float32)
    expected = ort_run(network, {"x": x})
    for name in names:
        if name.endswith(".onnx"):
            agree(ort_run(folder / name, {"x": x}), expected)
        else:
            assert (folder / name).read_text().strip()


def test_dump_that_cannot_be_made(network, compiled, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompileError, match="--dump-dir '.*file/d' cannot be made: Not a directory"):
        compiled(network, dump_dir=str(tmp_path / "file" / "d"))
