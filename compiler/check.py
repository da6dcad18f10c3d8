"""Is a compiled model right?  Its outputs against ONNX Runtime's."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from sparsec.compiler import reference
from sparsec.compiler.errors import CompileError
from sparsec.compiler.reference import Difference
from sparsec.compiler.request import WEIGHT_PASSES
from sparsec.runtime import Model, load


class Oracle:
    """ONNX Runtime's outputs of ``model`` (a path or serialised) on ``feeds``, computed when asked for."""

    def __init__(self, model: str | bytes, feeds: Mapping[str, np.ndarray], precision: str = "fp32"):
        self.model, self.feeds, self.precision = model, feeds, precision

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        return reference.run_reference(self.model, self.feeds)

    @cached_property
    def unoptimised(self) -> dict[str, np.ndarray]:
        if self.precision not in ("fp32", "int8", *WEIGHT_PASSES):
            return reference.run_reference(reference.rounded(self.model, self.precision), self.feeds)
        return reference.run_reference(self.model, self.feeds, optimised=False)

    @cached_property
    def spread(self) -> dict[str, float]:
        """The distance of the oracle to itself without its optimisations, by float output."""
        return {
            name: reference.compare(self.unoptimised[name], array, precision=self.precision).max_abs
            for name, array in self.expected.items()
            if reference.measured(array.dtype, self.precision)
        }

    def differences(self, found: Mapping[str, np.ndarray]) -> dict[str, Difference]:
        """How far each of ``found`` is.

        What misses the plain tolerance is compared with the operators as they stand: where weights are
        quantised, ONNX Runtime's optimisations quantise activations, too, which the model does not say.  Then
        it is judged by ``spread``.
        """
        return {name: self._difference(name, found[name]) for name in self.expected}

    def _difference(self, name: str, array: np.ndarray) -> Difference:
        plain = reference.compare(array, self.expected[name], precision=self.precision)
        if plain.within:
            return plain
        if self.precision in ("fp32", *WEIGHT_PASSES):
            literal = reference.compare(array, self.unoptimised[name], precision=self.precision)
            if literal.within or name not in self.spread:
                return literal
        return reference.compare(array, self.expected[name], self.spread.get(name, 0.0), self.precision)

    def require(self, found: Mapping[str, np.ndarray], what: str) -> dict[str, Difference]:
        """The differences, all of them within; else CompileError, which says that ``what`` is wrong."""
        differences = self.differences(found)
        for name, difference in differences.items():
            if not difference.within:
                finite = (np.isfinite(array).all() for array in (self.expected[name], found[name]))
                if self.precision == "fp16" and tuple(finite) == (True, False):
                    raise CompileError(
                        f"output '{name}' of {what} is not finite: a value between layers is beyond 65504, "
                        "the largest float16; nothing was published. --precision bf16 has float32's range"
                    )
                raise CompileError(
                    f"output '{name}' of {what} differs from ONNX Runtime by {difference.max_abs:.3g} "
                    f"on a scale of {difference.scale:.3g}; nothing was published. "
                    "--dump-dir D keeps every stage, "
                    "--no-verify publishes all the same"
                )
        return differences


def same_model(ingested: bytes, source: str, feeds: Mapping[str, np.ndarray]) -> None:
    """Raise CompileError where the ingested model does not compute what the source file computes."""
    Oracle(source, feeds).require(reference.run_reference(ingested, feeds), "the model as it was read")


def run_artifact(artifact: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an artifact, loaded for one run."""
    with load(artifact) as loaded:
        return outputs_of(loaded, feeds)  # its memory is free again before anything is compared


def outputs_of(loaded: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of the source model on all of its inputs; states are set before and read after the run."""
    if loaded.states:
        loaded.restore({info.name: feeds[info.name] for info in loaded.states})
    found = loaded({info.name: feeds[info.name] for info in loaded.inputs})
    left = loaded.snapshot()
    return found | {state["output"]: left[state["name"]] for state in loaded.manifest.get("states", ())}


def receipt(
    runs: Mapping[str, Callable[[Mapping], Mapping]],
    model: str | bytes,
    feeds: Mapping[str, np.ndarray],
    calibrated: bool,
    precision: str = "fp32",
    given: bytes | None = None,
) -> dict:
    """What the manifest says of an artifact against ONNX Runtime; ``runs`` has a run for each CPU level.

    ``given``: the model in float32 that ``model`` is quantised of; then it says how far that is, too.
    Raises CompileError for the first output that is not within.
    """
    oracle = Oracle(model, feeds, precision)
    worst: dict[str, Difference] = {}
    moved = {}
    for level, run in runs.items():
        found = run(feeds)
        differences = oracle.require(found, f"the kernels for {level}")
        if given is not None and not moved:
            moved = {"float32": reference.changes(reference.run_reference(given, feeds), found)}
        for name, difference in differences.items():
            if name not in worst or difference.max_abs > worst[name].max_abs:
                worst[name] = difference
    return {
        "input": "calibration data" if calibrated else f"random, seed {reference.SEED}",
        "tolerance": {"relative": reference.TOLERANCE[precision], "absolute": reference.ABSOLUTE},
        "levels": list(runs),
        "reference_spread": oracle.spread if "spread" in vars(oracle) else {},
        "max_error": {name: difference.to_json() for name, difference in worst.items()},
        **moved,
    }
