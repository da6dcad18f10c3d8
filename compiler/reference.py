"""The check against ONNX Runtime: inputs to run on, the reference's outputs, and how far ours are.

Tolerance (docs/architecture.md, "Numbers"): per float output ``max|a-b| <= 1e-5 * max|b| + 1e-6``
with NaN where the reference has NaN; integers and booleans are equal.  At a lower precision the tolerance
is that of ``TOLERANCE``, and what is no float may differ, but for bytes of a quantised model, which may
differ by ``STEP``.  A deep network may amplify rounding beyond that in any engine.  Then ONNX Runtime is
run once more, without its graph optimisations or with operands rounded to the lower precision: ``SPREAD``
times the distance of its two results is the tolerance; the receipt says so.
"""

import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from sparsec.compiler.errors import CompileError
from sparsec.compiler.plan import Port

RELATIVE, ABSOLUTE = 1e-5, 1e-6
#: RELATIVE by precision.  bfloat16 has 8 bits: a rounding is 2^-9 of a value, and layers add theirs up;
#: float16 and tf32 have 11.  Where weights alone are quantised, the reference has the same ones, and
#: activations lose 2^-16 in each layer.  Of quantised models every layer that ONNX Runtime has as integers is
#: equal; what both compute in floats between them may fall on the other side of a rounding, a step of 1/255.
TOLERANCE = {
    "fp32": RELATIVE,
    "tf32": 2.5e-3,
    "fp16": 2.5e-3,
    "bf16": 2e-2,
    "int8": 2e-2,
    "int8-weights": 1e-3,
    "int4-weights": 1e-3,
}
STEP = 1.0  # by which a byte may differ that is a rounded float
HALF = 2e-3  # for float16, relative and absolute: two units in the last place
SPREAD = 4.0
MAX_SPREAD = {
    "fp32": 1e-3,
    "tf32": 0.1,
    "fp16": 0.1,
    "bf16": 0.5,
    "int8": 0.5,
    "int8-weights": 1e-2,
    "int4-weights": 1e-2,
}  # of the scale; beyond, the model only amplifies its rounding
SEED = 0
#: What ``rounded`` rounds the first two inputs of.
PRODUCTS = ("MatMul", "Gemm", "Conv", "NMMatMul", "NMGemm", "NMConv")


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
    # Else models with int8 activations are computed in floats on x86, in part.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
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


def compare(
    ours: np.ndarray, reference: np.ndarray, spread: float = 0.0, precision: str = "fp32"
) -> Difference:
    """How far ``ours`` is from ``reference``; unequal shapes, dtypes or NaN places are never within.

    ``spread`` is the distance of the reference to itself when it rounds differently.  At a lower
    ``precision`` integers are not asked to be equal: they were decided by values that were rounded.
    """
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return Difference(float("inf"), 0.0, False)
    if not measured(reference.dtype, precision):
        equal = bool(np.array_equal(ours, reference))
        if precision != "fp32":
            return Difference(float(np.mean(ours != reference)), 1.0, True)
        return Difference(0.0 if equal else float("inf"), 1.0, equal)
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if np.any(~same & ~(np.isfinite(a) & np.isfinite(b))):
        return Difference(float("inf"), 0.0, False)
    with np.errstate(invalid="ignore"):
        error = float(np.max(np.abs(a - b), initial=0.0, where=~same))
    return Difference(error, scale_of(reference), error <= tolerance(reference, spread, precision))


def measured(dtype: np.dtype, precision: str) -> bool:
    """Whether outputs of ``dtype`` are compared by how far they are, and not by being equal."""
    return dtype.kind == "f" or (precision == "int8" and dtype.itemsize == 1 and dtype.kind in "iu")


def changes(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Output name -> largest change, relative to the output's scale, and cosine similarity."""
    found = {}
    for name, array in old.items():
        a, b = (value.astype(np.float64).ravel() for value in (new[name], array))
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(a @ b) / norm if norm else float(np.array_equal(a, b))
        found[name] = compare(new[name], array).to_json() | {"cosine": cosine}
    return found


def scale_of(reference: np.ndarray) -> float:
    """The largest finite absolute value."""
    b = reference.astype(np.float64)
    return float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))


def tolerance(reference: np.ndarray, spread: float = 0.0, precision: str = "fp32") -> float:
    """By how much a right result may differ from a ``measured`` reference; the rest as in ``compare``."""
    scale = scale_of(reference)
    plain = HALF * (scale + 1) if reference.dtype == np.float16 else TOLERANCE[precision] * scale + ABSOLUTE
    if reference.dtype.kind != "f":
        plain = STEP
    return max(plain, widened(spread, scale, precision))


def widened(spread: float, scale: float, precision: str = "fp32") -> float:
    """The tolerance that the reference's own ``spread`` justifies, at most ``MAX_SPREAD`` of the scale."""
    return min(SPREAD * spread, MAX_SPREAD[precision] * scale) if np.isfinite(spread) else 0.0


def rounded(model: str | bytes, precision: str = "bf16", only: Collection[str] | None = None) -> bytes:
    """``model`` with the operands of every matrix product and convolution rounded to ``precision``; ``only``:
    of those nodes.

    ONNX has no tf32; float16 has the same number of bits.
    """
    short = "BFLOAT16" if precision == "bf16" else "FLOAT16"
    proto = onnx.load(model) if isinstance(model, str) else onnx.load_from_string(model)
    nodes = []
    for count, node in enumerate(proto.graph.node):
        if node.op_type in PRODUCTS and (only is None or node.name in only):
            for i in (0, 1):
                names = [
                    node.input[i],
                    *(f"{node.input[i]}/{count}/{i}/{kind}" for kind in ("short", "fp32")),
                ]
                for a, b, to in zip(names, names[1:], (short, "FLOAT"), strict=False):
                    nodes.append(onnx.helper.make_node("Cast", [a], [b], to=getattr(onnx.TensorProto, to)))
                node.input[i] = names[-1]
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()
