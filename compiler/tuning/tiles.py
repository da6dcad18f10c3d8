"""The tiles of a module's kernels: what the tuning database knows, put onto the functions."""

from collections.abc import Mapping, Sequence

import tvm

from sparsec.compiler.choices import Choices
from sparsec.compiler.tuning.candidates import Candidate
from sparsec.compiler.tuning.database import Database
from sparsec.compiler.tuning.measure import context
from sparsec.schedules.contraction import find_anchor
from sparsec.schedules.contraction_rule import TILE_PANELS
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.layout import DENSE


def tuned(kernels: tvm.IRModule, levels: Sequence[str], choices: Choices) -> dict[str, dict[str, int]]:
    """``{level: {kernel: panels}}`` for the kernels that are fastest in other tiles than the counted ones."""
    if choices.tiles is not None:
        return {level: dict(by_kernel) for level, by_kernel in choices.tiles.items() if level in levels}
    found = {level: _of_level(kernels, level, choices.layers) for level in levels}
    return {level: by_kernel for level, by_kernel in found.items() if by_kernel}


def _of_level(kernels: tvm.IRModule, level: str, layers: Mapping[str, str]) -> dict[str, int]:
    known = Database().read(context(level))
    found = {}
    for name, func in kernels.functions.items():
        anchor = find_anchor(func) if known else None
        if anchor is None:
            continue
        spec = anchor[0]
        kernel = "dense" if getattr(spec, "pattern", DENSE) == DENSE else "sparse"
        times = known.get(layers.get(to_text(spec), to_text(spec)), {})
        own = {c: s for c, s in ((Candidate.parse(t), s) for t, s in times.items()) if c.kernel == kernel}
        panels = min(own, key=own.get).panels if own else 0
        if panels:
            found[name.name_hint] = panels
    return dict(sorted(found.items()))


def with_tiles(kernels: tvm.IRModule, tiles: Mapping[str, int]) -> tvm.IRModule:
    """``kernels`` with the panels of ``{kernel: panels}`` asked for; other names are left alone."""
    functions = {
        name: func.with_attr(TILE_PANELS, tiles[name.name_hint]) if name.name_hint in tiles else func
        for name, func in kernels.functions.items()
    }
    return tvm.IRModule(functions, attrs=kernels.attrs)
