"""The ONNX standard's own examples of its operators: models, inputs and outputs, made by onnx's test suite.

``EXCLUDED`` names every example of an operator in our table that is not computed, and why.  An example that
is excluded and works is as much a failure as one that is not excluded and does not.
"""

from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest

from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import IngestError
from sparsec.compiler.ingest.table import DTYPES, EXPANDED, IMPORTED, OWN, RESOLVED

NEWEST = 26  # ingest takes models up to this opset
TAKEN = {*IMPORTED, *OWN, *EXPANDED, *RESOLVED}
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}  # relative to the largest

CEIL = "opset 22 drops a window that begins in the padding; opset 20, to which we convert, keeps it"
MEAN = "the mean and the deviation are outputs, which exporters do not write"

# Pattern of names, and the reason.  Sorted.
EXCLUDED = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": CEIL,
    "test_batchnorm_*_training_mode": "training",
    "test_blackmanwindow*": "the size of the window is an input of the model",
    "test_celu_float16_expanded": "TVM's Elu subtracts a float32 constant from float16",
    "test_constantofshape_*": "the shape of the result is an input of the model",
    "test_hammingwindow*": "the size of the window is an input of the model",
    "test_hannwindow*": "the size of the window is an input of the model",
    "test_if": "the condition is an input of the model",
    "test_layer_normalization_*_axis[0-9]": MEAN,
    "test_layer_normalization_*_axis_negative_[0-9]": MEAN,
    "test_layer_normalization_*_epsilon": MEAN,
    "test_layer_normalization_default_axis": MEAN,
    "test_loop11": "the trip count is an input of the model",
    "test_lstm_with_peepholes": "no peephole weights, no sequence lengths",
    "test_maxpool_2d_ceil_output_size_reduce_by_one": CEIL,
    "test_maxpool_with_argmax_*": "the indices of the maxima are an output",
    "test_maxunpool_export_with_output_shape": "onnx infers no shape where output_shape is given",
    "test_mvn": "onnx cannot infer its function without the attribute axes",
    "test_not_?d": "of opset 1, we take 7 and newer",
    "test_pow_types_int*": "powers of integers",
    "test_range_*_expanded": "the trip count of the loop is an input of the model",
    "test_reduce_max_bool_inputs": "the largest of booleans",
    "test_reduce_min_bool_inputs": "the least of booleans",
    "test_resize_*_antialias": "antialiasing",
    "test_resize_*_not_larger": "keep_aspect_ratio_policy",
    "test_resize_*_not_smaller": "keep_aspect_ratio_policy",
    "test_resize_downsample_scales_*_align_corners": "ONNX Runtime, followed here, divides by whole sizes",
    "test_resize_tf_crop_and_resize*": "crops",
    "test_roialign_aligned_*": "the stored outputs are rounded to four digits",
    "test_roialign_mode_max": "the largest of the samples",
    "test_scan_sum": "of opset 8, in which Scan is another operator",
    "test_training_dropout*": "training",
}


@pytest.fixture(scope="module")
def cases():
    """name -> (model, inputs, outputs) of the examples that are about operators in our table."""
    from onnx.backend.test.case.node import collect_testcases

    found = {}
    for case in collect_testcases(None):
        model = lowered_opset(case.model)
        inputs, outputs = ([as_array(value) for value in values] for values in case.data_sets[0])
        arrays = inputs + outputs
        if model is not None and all(a is not None and a.size for a in arrays) and in_table(model):
            found[case.name] = model, inputs, outputs
    return found


def lowered_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """``model``, declared to be of the newest opset that we take if its operators are the same there."""
    declared = {entry.domain: entry for entry in model.opset_import}
    if set(declared) != {""}:
        return None
    if declared[""].version > NEWEST:
        since = {
            onnx.defs.get_schema(node.op_type, declared[""].version).since_version
            for node in model.graph.node
        }
        if max(since) > NEWEST:
            return None
        declared[""].version = NEWEST
    return model


def as_array(value) -> np.ndarray | None:
    """The value of a port; None for sequences, strings and what else is no tensor of ours."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic, float, int, bool)):
        return None
    value = np.asarray(value)
    known = value.dtype.kind in "fiub" or value.dtype.name == "bfloat16"
    return value if known and onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in TENSOR_TYPES else None


TENSOR_TYPES = {onnx.TensorProto.DataType.Value(name) for name in DTYPES}


def in_table(model: onnx.ModelProto) -> bool:
    return all(not node.domain and node.op_type in TAKEN for node in model.graph.node)


def failure(case, run_graph) -> str | None:
    """Why the example is not computed, or None.

    The examples hand over shapes, axes and weights as inputs.  Where the compiler does not take a model so,
    all inputs but the first become constants, as they are in models that people export.
    """
    model, inputs, outputs = case
    names = [value.name for value in model.graph.input]
    feeds = dict(zip(names, inputs, strict=True))
    try:
        found = run_graph(model, feeds).outputs
    except (IngestError, CompileError) as error:
        if len(names) < 2:
            return str(error)
        try:
            found = run_graph(with_constants(model, feeds, names[1:]), {names[0]: feeds[names[0]]}).outputs
        except (IngestError, CompileError) as again:
            return str(again)
    for value, expected in zip(model.graph.output, outputs, strict=True):
        if (problem := difference(found[value.name], expected)) is not None:
            return f"{value.name} {problem}"
    return None


def with_constants(model, feeds, names) -> onnx.ModelProto:
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    kept = [value for value in changed.graph.input if value.name not in names]
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    changed.graph.initializer.extend(onnx.numpy_helper.from_array(feeds[name], name) for name in names)
    return changed


def difference(found: np.ndarray, expected: np.ndarray) -> str | None:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"is {found.dtype}{found.shape}, not {expected.dtype}{expected.shape}"
    if expected.dtype.name not in TOLERANCE:
        wrong = found != expected
    else:
        a, b = found.astype(np.float64), expected.astype(np.float64)
        limit = TOLERANCE[expected.dtype.name] * np.max(np.abs(b), initial=0, where=np.isfinite(b)) + 1e-6
        with np.errstate(invalid="ignore"):
            wrong = ~((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= limit))
    if not wrong.any():
        return None
    return f"differs in {wrong.sum()} of {wrong.size}: {found[wrong][:3]}, not {expected[wrong][:3]}"


def check(cases, names, run_graph) -> None:
    result = []
    for name in names:
        excluded = any(fnmatchcase(name, pattern) for pattern in EXCLUDED)
        try:
            problem = failure(cases[name], run_graph)
        except Exception as error:
            result.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        if excluded and problem is None:
            result.append(f"{name}: is excluded and works")
        if not excluded and problem is not None:
            result.append(f"{name}: {problem}")
    assert not result, "\n".join([f"{len(result)} surprises:", *result])


def test_exclusions_are_sorted_and_used(cases):
    assert list(EXCLUDED) == sorted(EXCLUDED)
    for pattern, reason in EXCLUDED.items():
        assert any(fnmatchcase(name, pattern) for name in cases), pattern
        assert reason


def test_enough_examples(cases):
    """A new release of onnx that moves its examples would leave nothing to test."""
    assert len(cases) > 1000
    used = {node.op_type for model, _, _ in cases.values() for node in model.graph.node}
    assert len(used) > 130


def test_sample(cases, run_graph):
    """Every twentieth example."""
    check(cases, sorted(cases)[::20], run_graph)


@pytest.mark.slow
def test_all(cases, run_graph):
    check(cases, sorted(cases), run_graph)


# The comparison itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(TOLERANCE)[:3])
def test_comparison_rejects(dtype):
    good = np.array([0.5, -1, 2, -3, 0], dtype)
    special = np.array([np.nan, np.inf, -np.inf, 1], dtype)
    assert difference(good.copy(), good) is None and difference(special.copy(), special) is None
    assert difference(np.roll(special, 1), special) is not None
    for bad in (2 * good, -good, 0 * good, np.roll(good, 1), good.astype("int8"), good[:4]):
        assert difference(bad, good) is not None
