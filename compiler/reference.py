"""The check against ONNX Runtime: inputs to run on, the reference's outputs, and how far ours are.

Tolerance (docs/architecture.md, "Numbers"): per float output ``max|a-b| <= 1e-5 * max|b| + 1e-6``
with NaN where the reference has NaN; integers and booleans are equal.  A deep network may amplify the
rounding of float32 beyond that in any engine.  Then ONNX Runtime is run once more without its graph
optimisations: ``SPREAD`` times the distance of its two results is the tolerance, and the receipt says so.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from sparsec.compiler.errors import CompileError
from sparsec.compiler.plan import Port

RELATIVE, ABSOLUTE = 1e-5, 1e-6
HALF = 2e-3  # for float16, relative and absolute: two units in the last place
SPREAD = 4.0
MAX_SPREAD = 1e-3  # relative to the scale; a model that amplifies rounding further cannot be checked
SEED = 0


@dataclass(frozen=True)
class Difference:
    """``max_abs`` is the largest error, ``scale`` the reference's largest magnitude."""

    max_abs: float
    scale: float
    within: bool

    def to_json(self) -> dict:
        relative = self.max_abs / self.scale if self.scale else self.max_abs
        return {"max_abs": self.max_abs, "max_rel_to_scale": relative, "within": self.within}


def random_inputs(model: ir.Model, inputs: tuple[Port, ...], seed: int = SEED) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, whole-range bytes, indices that every lookup allows, true masks."""
    rng = np.random.default_rng(seed)
    values = {value.name: value for value in model.graph.inputs}
    feeds = {}
    for port in inputs:
        dtype = np.dtype(port.dtype)
        if dtype.kind == "f":
            feeds[port.name] = rng.standard_normal(port.shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[port.name] = np.ones(port.shape, bool)
        elif dtype.itemsize == 1:  # quantised values
            limits = np.iinfo(dtype)
            feeds[port.name] = rng.integers(limits.min, limits.max + 1, port.shape).astype(dtype)
        else:
            bound = index_bound(values.get(port.name))
            high = bound if bound is not None else 2
            low = 0 if bound is not None else 1  # an integer that looks nothing up is most often a mask
            feeds[port.name] = rng.integers(low, max(high, low + 1), port.shape).astype(dtype)
    return feeds


def index_bound(value: ir.Value | None) -> int | None:
    """The smallest table that ``value`` is looked up in, through casts and reshapes."""
    bounds, seen, work = [], set(), [value] if value is not None else []
    while work:
        at = work.pop()
        if at in seen:
            continue
        seen.add(at)
        for node, position in at.uses():
            if node.op_type == "Gather" and position == 1:
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                bounds.append(int(node.inputs[0].shape[axis]))
            elif node.op_type in (
                "Cast",
                "Reshape",
                "Squeeze",
                "Unsqueeze",
                "Identity",
                "Transpose",
                "Flatten",
            ):
                work.extend(node.outputs)
    return min(bounds, default=None)


def calibration_inputs(path: str, inputs: tuple[Port, ...]) -> dict[str, np.ndarray]:
    """One batch from the npz at ``path``: arrays by input name, with more rows than a batch cut off."""
    try:
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CompileError(f"calibration data '{path}' cannot be read as npz: {error}") from error
    feeds = {}
    for port in inputs:
        if port.name not in arrays:
            raise CompileError(
                f"calibration data '{path}' has no array '{port.name}'; "
                f"it holds {', '.join(arrays) or 'none'}"
            )
        array = arrays[port.name]
        if port.shape and array.ndim == len(port.shape) and array.shape[0] >= port.shape[0]:
            array = array[: port.shape[0]]
        if array.shape != port.shape or array.dtype != np.dtype(port.dtype):
            raise CompileError(
                f"calibration data '{path}': '{port.name}' must be {port.dtype}{list(port.shape)}, "
                f"found {array.dtype}{list(array.shape)}"
            )
        feeds[port.name] = array
    return feeds


def run_reference(
    model: str | bytes, feeds: Mapping[str, np.ndarray], *, optimised: bool = True
) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs by name; ``model`` is a path or a serialised model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        wanted = {value.name for value in session.get_inputs()}
        results = session.run(names, {name: feeds[name] for name in feeds if name in wanted})
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise CompileError(
            f"ONNX Runtime cannot run the model, so it cannot be checked: {line}; --no-verify skips the check"
        ) from error
    return dict(zip(names, results, strict=True))


def compare(ours: np.ndarray, reference: np.ndarray, spread: float = 0.0) -> Difference:
    """How far ``ours`` is from ``reference``; unequal shapes, dtypes or NaN places are never within.

    ``spread`` is the distance of the reference to itself when it rounds differently.
    """
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return Difference(float("inf"), 0.0, False)
    if reference.dtype.kind != "f":
        equal = bool(np.array_equal(ours, reference))
        return Difference(0.0 if equal else float("inf"), 1.0, equal)
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if np.any(~same & ~(np.isfinite(a) & np.isfinite(b))):
        return Difference(float("inf"), 0.0, False)
    with np.errstate(invalid="ignore"):
        error = float(np.max(np.abs(a - b), initial=0.0, where=~same))
    return Difference(error, scale_of(reference), error <= tolerance(reference, spread))


def scale_of(reference: np.ndarray) -> float:
    """The largest finite absolute value."""
    b = reference.astype(np.float64)
    return float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))


def tolerance(reference: np.ndarray, spread: float = 0.0) -> float:
    """By how much a right result may differ from ``reference``, floats; ``spread`` as in ``compare``."""
    scale = scale_of(reference)
    plain = HALF * (scale + 1) if reference.dtype == np.float16 else RELATIVE * scale + ABSOLUTE
    return max(plain, widened(spread, scale))


def widened(spread: float, scale: float) -> float:
    """The tolerance that the reference's own ``spread`` justifies, at most ``MAX_SPREAD`` of the scale."""
    return min(SPREAD * spread, MAX_SPREAD * scale) if np.isfinite(spread) else 0.0
