"""The check itself: what it must refuse to call equal, what it runs on, and what it says."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.errors import CompileError
from sparsec.compiler.plan import Port
from sparsec.compiler.reference import (
    ABSOLUTE,
    RELATIVE,
    calibration_inputs,
    compare,
    index_bound,
    random_inputs,
    run_reference,
)

X = np.random.default_rng(7).standard_normal((5, 17)).astype(np.float32)


def changed(change):
    array = X.copy()
    change(array)
    return array


def put(value):
    def change(array):
        array[2, 3] = value

    return changed(change)


WRONG = {
    "twice": 2 * X,
    "sign flip": -X,
    "zeros": np.zeros_like(X),
    "shifted by one column": np.roll(X, 1, axis=1),
    "transposed data": np.ascontiguousarray(X.T).reshape(X.shape),
    "one value off": put(X[2, 3] + 1e-3),
    "a little over the tolerance": put(X[2, 3] + 1.2 * (RELATIVE * np.abs(X).max() + ABSOLUTE)),
    "NaN": put(np.nan),
    "all NaN": np.full_like(X, np.nan),
    "Inf": put(np.inf),
    "dtype": X.astype(np.float64),
    "shape": X[:, :16],
    "rank": X.reshape(-1),
    "unit axis": X[None],
    "broadcastable": X[:1],
}


@pytest.mark.parametrize("case", WRONG)
def test_rejects(case):
    difference = compare(WRONG[case], X)
    assert not difference.within
    assert difference.to_json()["within"] is False


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (np.nan, 1.0),
        (1.0, np.nan),
        (np.inf, -np.inf),
        (-np.inf, np.inf),
        (1.0, np.inf),
        (np.inf, np.nan),
        (np.nan, np.inf),
        (np.finfo(np.float32).max, np.inf),
    ],
)
def test_rejects_other_specials(ours, theirs):
    a, b = np.array([1, ours, 2], np.float32), np.array([1, theirs, 2], np.float32)
    assert not compare(a, b).within


def test_infinity_does_not_loosen_the_rest():
    """An infinite reference gives no infinite scale, behind which anything would be within."""
    b = np.array([np.inf, 1.0, 2.0], np.float32)
    assert not compare(np.array([np.inf, 1.0, 2.001], np.float32), b).within
    assert compare(np.array([np.inf, 1.0, 2.00001], np.float32), b).scale == 2.0


def test_accepts_equal_specials():
    b = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0], np.float32)
    difference = compare(b.copy(), b)
    assert difference.within and difference.max_abs == 0.0
    assert compare(np.array([0.0], np.float32), np.array([-0.0], np.float32)).within


def test_accepts_rounding():
    difference = compare(X * np.float32(1 + 3e-6), X)
    assert difference.within
    assert 0 < difference.max_abs < RELATIVE * np.abs(X).max()
    assert difference.scale == np.abs(X).max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_but_specials(value):
    full = np.full((3, 3), value, np.float32)
    assert compare(full.copy(), full).within
    assert not compare(np.zeros_like(full), full).within


def test_empty_arrays():
    empty = np.zeros((0, 4), np.float32)
    assert compare(empty.copy(), empty).within
    assert not compare(np.zeros((4, 0), np.float32), empty).within


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.bool_])
def test_integers_are_equal_or_not(dtype):
    b = np.array([0, 1, 1, 0]).astype(dtype)
    assert compare(b.copy(), b).within
    assert not compare(np.array([0, 1, 1, 1]).astype(dtype), b).within
    assert not compare(b.astype(np.int16), b).within


def test_large_integers_are_not_rounded():
    """2**53 + 1 has no float64; integers may not be compared as floats."""
    b = np.array([2**53 + 1], np.int64)
    assert not compare(b - 1, b).within


@pytest.mark.parametrize("spread", [np.inf, np.nan])
def test_reference_that_disagrees_with_itself_excuses_nothing(spread):
    assert not compare(2 * X, X, spread).within


def test_spread_of_the_reference_is_allowed_a_few_times():
    error = 4 * RELATIVE * np.abs(X).max()
    off = put(X[2, 3] + error)
    assert not compare(off, X).within
    assert compare(off, X, spread=error / 2).within
    assert not compare(off, X, spread=error / 10).within


# Inputs ------------------------------------------------------------------------------------------------


def text_model(body: str) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 20]> g {body}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


LOOKUPS = {
    "direct": "y = Gather(t, i)",
    "other axis": "y = Gather<axis = 1>(t, i)",
    "through Cast": "j = Cast<to = 6>(i)  y = Gather(t, j)",
    "through Reshape": "s = Constant<value = int64[1] {6}>()  j = Reshape(i, s)  y = Gather(t, j)",
    "the smaller of two": "a = Gather(t, i)  b = Gather<axis = 1>(t, i)  c = Shape(b)  y = Identity(a)",
}


@pytest.mark.parametrize(
    ("case", "bound"),
    [
        ("direct", 9),
        ("other axis", 4),
        ("through Cast", 9),
        ("through Reshape", 9),
        ("the smaller of two", 4),
    ],
)
def test_indices_stay_inside_the_table(case, bound):
    model = text_model(f"(float[9,4] t, int64[2,3] i) => (y) {{ {LOOKUPS[case]} }}")
    assert index_bound(model.graph.inputs[1]) == bound
    port = Port("i", "int64", (2, 3), (2, 3))
    drawn = np.concatenate([random_inputs(model, (port,), seed)["i"] for seed in range(50)])
    assert drawn.dtype == np.int64
    assert drawn.min() == 0 and drawn.max() == bound - 1


def test_integers_that_look_nothing_up():
    model = text_model("(int64[2,3] mask) => (y) { y = Neg(mask) }")
    assert index_bound(model.graph.inputs[0]) is None
    assert (random_inputs(model, (Port("mask", "int64", (2, 3), (2, 3)),))["mask"] == 1).all()


def test_random_inputs_by_dtype():
    model = text_model("(float[4] x, double[4] d, bool[4] b, float z) => (y) { y = Identity(x) }")
    ports = (
        Port("x", "float32", (400,), (400,)),
        Port("d", "float64", (4,), (4,)),
        Port("b", "bool", (4,), (4,)),
        Port("z", "float32", (), ()),
    )
    feeds = random_inputs(model, ports)
    assert {name: (array.dtype.name, array.shape) for name, array in feeds.items()} == {
        p.name: (p.dtype, p.shape) for p in ports
    }
    assert feeds["b"].all()
    assert 0.8 < feeds["x"].std() < 1.2 and abs(feeds["x"].mean()) < 0.2
    assert (random_inputs(model, ports)["x"] == feeds["x"]).all()
    assert (random_inputs(model, ports, seed=1)["x"] != feeds["x"]).any()


# Calibration data --------------------------------------------------------------------------------------

PORTS = (Port("x", "float32", (2, 3), ("batch", 3)), Port("n", "int64", (2,), (2,)))


def npz(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def test_calibration(tmp_path):
    x, n = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([4, 5])
    feeds = calibration_inputs(npz(tmp_path, x=x, n=n, more=x), PORTS)
    assert list(feeds) == ["x", "n"]
    assert (feeds["x"] == x).all() and (feeds["n"] == n).all()


def test_calibration_takes_the_first_batch(tmp_path):
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    feeds = calibration_inputs(npz(tmp_path, x=x, n=np.arange(10)), PORTS)
    assert (feeds["x"] == x[:2]).all() and feeds["n"].tolist() == [0, 1]


def refused(path) -> str:
    with pytest.raises(CompileError) as caught:
        calibration_inputs(path, PORTS)
    text = str(caught.value)
    assert "\n" not in text and path in text
    return text


def test_calibration_lacks_an_array(tmp_path):
    path = npz(tmp_path, x=np.zeros((2, 3), np.float32), y=np.zeros(2))
    assert "has no array 'n'; it holds x, y" in refused(path)
    empty = tmp_path / "empty.npz"
    np.savez(empty)
    assert "has no array 'x'; it holds none" in refused(str(empty))


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.zeros((2, 3)), r"float64[2, 3]"),
        (np.zeros((2, 4), np.float32), r"float32[2, 4]"),
        (np.zeros((1, 3), np.float32), r"float32[1, 3]"),
        (np.zeros(3, np.float32), r"float32[3]"),
        (np.float32(0), r"float32[]"),
    ],
)
def test_calibration_array_does_not_fit(tmp_path, x, found):
    text = refused(npz(tmp_path, x=x, n=np.arange(2)))
    assert f"'x' must be float32[2, 3], found {found}" in text


def test_calibration_is_no_npz(tmp_path):
    missing = str(tmp_path / "missing.npz")
    assert "cannot be read as npz" in refused(missing)
    for name, content in {"text.npz": b"hello", "empty.npz": b"", "cut.npz": b"PK\x03\x04 nothing"}.items():
        (tmp_path / name).write_bytes(content)
        assert "cannot be read as npz" in refused(str(tmp_path / name))


def test_calibration_is_one_array(tmp_path):
    path = str(tmp_path / "one.npy")
    np.save(path, np.zeros((2, 3), np.float32))
    assert "cannot be read as npz" in refused(path)


def test_calibration_holds_objects(tmp_path):
    """Pickled objects run code when they are read; they are refused."""
    path = npz(tmp_path, x=np.array([{}], dtype=object), n=np.arange(2))
    assert "cannot be read as npz" in refused(path)


# The reference itself ----------------------------------------------------------------------------------


def test_reference_runs_bytes_and_paths(tmp_path):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 20]> g (float[3] x, float[3] unused) => (float[3] y, float[3] z)'
        "{ y = Neg(x) z = Abs(x) }"
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    x = np.array([1, -2, 3], np.float32)
    for model in (str(path), proto.SerializeToString()):
        found = run_reference(model, {"x": x, "unused": x, "not an input": x})
        assert list(found) == ["y", "z"]
        assert (found["y"] == -x).all() and (found["z"] == abs(x)).all()


def test_reference_cannot_run():
    with pytest.raises(
        CompileError, match="ONNX Runtime cannot run the model, .*--no-verify skips the check"
    ):
        run_reference(b"no model", {})
