"""Pictures, made from the JSON and nothing else; SVG without dates or random names, so that two compare."""

from collections.abc import Callable
from pathlib import Path

from . import goals
from .report import kept, kernel_measures
from .results import FOLDER

COLOURS = {
    "dense": "#7f7f7f", "2:4x1": "#9ecae1", "2:4x4": "#4292c6", "2:4x32": "#08519c", "1:4x32": "#006d2c",
    "90%": "#d94801",
}  # fmt: skip


def write(found: dict, folder: Path = FOLDER) -> None:
    for name, draw in (("models.svg", models), ("kernels.svg", kernels)):
        save(draw, found, folder / name)


def save(draw: Callable, found: dict, file: Path) -> None:
    """Write what ``draw(found)`` gives, if anything."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "sparsec", "svg.fonttype": "none", "font.size": 9}
    figure = draw(found)
    if figure:
        figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")


def models(found: dict):
    """Our time over the best dense peer's, one thread, batch 1; a tick where the goal is."""
    plain = [row for row in found["models"] if goals.precision_of(row) == "fp32"]
    rows = [r for r in plain if (r["batch"], r["threads"], r["target"]) == (1, 1, "native")]
    bars = {(r["model"], r["variant"]): goals.ratio(r) for r in rows}
    bars = {key: value for key, value in bars.items() if value is not None}
    names = list(dict.fromkeys(model for model, _ in bars))
    if not names:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 1.1 * len(names)), 3.6))
    axes, width = figure.subplots(), 0.8 / len(COLOURS)
    for i, (variant, colour) in enumerate(COLOURS.items()):
        at = [(x + (i - (len(COLOURS) - 1) / 2) * width, name) for x, name in enumerate(names)]
        here = [(x, bars[name, variant]) for x, name in at if (name, variant) in bars]
        if here:
            axes.bar([x for x, _ in here], [y for _, y in here], width, color=colour, label=variant)
        for x, name in at:
            asked = [g.ratio for g in goals.asked(name, variant) if g.against == "peer"]
            if (name, variant) in bars and asked:
                axes.hlines(asked[0], x - width / 2, x + width / 2, color="black", linewidth=1.5)
    axes.axhline(1, color="black", linewidth=0.5, linestyle=":")
    axes.set_xticks(
        range(len(names)), [n.removeprefix("mlperf_tiny_") for n in names], rotation=20, ha="right"
    )
    axes.set_ylabel("latency over the best dense peer")
    axes.set_title("One thread, batch 1; lower is better; black ticks: asked")
    axes.legend(ncols=len(COLOURS), loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)
    return figure


def kernels(found: dict):
    """GEMM from 128 rows on: speed over the best dense peer, by pattern; and the ideal."""
    rows = [
        r
        for r in found["kernels"]
        if r["family"] == "gemm" and r["target"] == "native" and " 16x" not in r["name"]
    ]
    if not rows or not found["peaks"]:
        return None
    from matplotlib.figure import Figure

    speeds: dict[str, list[float]] = {}
    for row in rows:
        speed = kernel_measures(row, found["peaks"][-1])[1]
        if speed:
            speeds.setdefault(row["variant"], []).append(speed)
    order = sorted(speeds, key=lambda v: (v.endswith("%"), -kept(v), int(v.partition("x")[2] or 0)))
    figure = Figure(figsize=(max(5, 0.5 * len(order) + 1), 3.4))
    axes = figure.subplots()
    for x, variant in enumerate(order):
        axes.plot([x] * len(speeds[variant]), speeds[variant], "o", color="#08519c", alpha=0.6, markersize=5)
        if variant in goals.GEMM_SPEEDUP:
            axes.hlines(goals.GEMM_SPEEDUP[variant], x - 0.35, x + 0.35, color="black", linewidth=1.5)
    axes.set_xticks(range(len(order)), order, rotation=45, ha="right")
    axes.set_ylim(0)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_ylabel("speed over the best dense peer")
    axes.set_title("GEMM, 128 and 512 rows, one thread; higher is better; ticks: asked")
    return figure
