"""What each form does to each layer alone, and what that does to the outputs of the model.

Both are squared, relative and add up (see `passes.prune.allocate`).  A layer's own error is that of its
output on sampled rows of the inputs that it has in the model as given, with inputs and weights as the form
rounds and prunes them.  How much of it arrives at the outputs is one number for each layer, measured with
noise in its weight, as HIGGS does (Malinovskii et al., 2024).
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsec.compiler.allocation.sensitivity import changes
from sparsec.compiler.calibration import Replay
from sparsec.compiler.mixed.forms import PLAIN, Form, Forms, Unit
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune.distortion import distortion
from sparsec.passes.prune.places import find_place
from sparsec.passes.prune.walk import Settings as Pruning
from sparsec.passes.quantize.grid import symmetric
from sparsec.passes.quantize.migration import Choice
from sparsec.passes.quantize.seen import look
from sparsec.passes.quantize.walk import Settings, grouped, read_on_grid
from sparsec.schedules.bits import from_bfloat16, to_bfloat16

NOISE = 0.05
"""Of the size of a weight: far above the rounding of float32, and small enough for errors to add up."""
SAMPLES = 16
"""On which the outputs are compared."""


def form_errors(
    model: ir.Model,
    units: Sequence[Unit],
    forms: Forms,
    feeds: Sequence[Mapping[str, np.ndarray]],
    pruning: Pruning,
    quantising: Settings,
    log: Callable[[str], None],
) -> dict[str, dict[Form, float]]:
    """``{node: {form: error of the outputs}}``; without int8 where an input is zero on all of ``feeds``."""
    own: dict[str, dict[Form, float]] = {}
    noisy: dict[str, np.ndarray] = {}
    arrives: dict[str, float] = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="sparsec-") as folder:
        replay = Replay(model.clone(), feeds, Path(folder))
        for unit in units:
            places = [find_place(layer, set()) for layer in unit.layers]
            seen = {p.layer: look([p], replay, pruning.mask)[unit.name] for p in places}
            first = seen[places[0].layer]
            choice = None if first.dead else read_on_grid(places, first, quantising)[0]
            for layer in unit.layers:
                name, rows = node_name(layer.node), seen[layer].rows
                weights = {None: layer.weight} | _pruned(layer, forms[name], replay, pruning, log)
                own[name] = {
                    form: error(
                        rows, layer, *rounded(form, rows, _grouped(layer, weights[form.pattern]), choice)
                    )
                    for form in forms[name]
                    if form.precision != "int8" or choice is not None
                }
                noise = rng.standard_normal(layer.weight.shape) * (NOISE * np.std(layer.weight) or NOISE)
                noisy[name] = (layer.weight + noise).astype(layer.weight.dtype)
                arrives[name] = error(rows, layer, rows, _grouped(layer, noisy[name]), centred=False)
    moved = changes(model, noisy, feeds[: -(-SAMPLES // _samples(feeds))], log, pruning.mask)
    return {
        name: {form: moved[name] / (arrives[name] or 1.0) * found[form] for form in found} | {PLAIN: 0.0}
        for name, found in own.items()
    }


def rounded(
    form: Form, rows: np.ndarray, weight: np.ndarray, choice: Choice | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a layer multiplies in `form`: rows `[groups, rows, taps * in]`, weight `[groups, out, taps * in]`.

    Integers are the nearest; `choice` says how the input becomes such."""
    if form.precision == "bf16":
        return from_bfloat16(to_bfloat16(rows)), from_bfloat16(to_bfloat16(weight))
    if form.precision == "int8":
        moved = choice.migration.weight(weight)
        return choice.grid.nearest(choice.migration.rows(rows)), np.stack(
            [symmetric(group).nearest(group) for group in moved]
        )
    return rows, weight


def error(
    rows: np.ndarray, layer: Layer, other: np.ndarray, weight: np.ndarray, *, centred: bool = True
) -> float:
    """Squared error of `other` times `weight` beside the layer's own output, relative to its variance.

    `centred`: the bias takes back what it can."""
    wanted = _times(rows, grouped(layer))
    off = _times(other, weight) - wanted
    if centred:
        off -= off.mean(axis=1, keepdims=True)
    return float(np.square(off).sum()) / (
        float(np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum()) or 1
    )


def _times(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.matmul(rows.astype(np.float32), weight.astype(np.float32).swapaxes(1, 2))


def _pruned(
    layer: Layer, forms: Sequence[Form], replay: Replay, pruning: Pruning, log: Callable[[str], None]
) -> dict:
    """Pattern -> the layer's weight in it, of all patterns in `forms`."""
    patterns = list(dict.fromkeys(form.pattern for form in forms if form.pattern))
    found = {}
    if patterns:
        distortion(
            [(layer, patterns)],
            replay,
            pruning,
            keep=lambda _, trials: found.update({p: trial.weight for p, trial in trials.items()}),
            log=log,
        )
    return found


def _grouped(layer: Layer, weight: np.ndarray) -> np.ndarray:
    return weight.reshape(grouped(layer).shape)


def _samples(feeds: Sequence[Mapping[str, np.ndarray]]) -> int:
    return len(next(iter(feeds[0].values())))
