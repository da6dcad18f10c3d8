"""`benchmarks/results/accuracy.md` and `frontier.svg`, made from `accuracy.json` and nothing else."""

import textwrap
from pathlib import Path

from .. import plots
from ..report import table
from .store import FILE

MINILM = {
    "all": "All 36 linear layers of the encoder",
    "attention": "The 24 projections of attention alone, where every method has been run",
}
NETWORKS = {
    "minilm": "all-MiniLM-L6-v2",
    "minilm attention": "its 24 projections of attention, 64 texts",
    "ic_resnet8": "ResNet-8",
    "resnet8": "ResNet-8",
    "kws": "keyword spotter",
    "ad": "autoencoder",
}


def write(found: dict, folder: Path = FILE.parent) -> None:
    (folder / "accuracy.md").write_text(page(found))
    plots.save(frontier_plot, found, folder / "frontier.svg")


def page(found: dict) -> str:
    lines = ["# Accuracy of pruned and of quantised networks", ""]
    lines += paragraph(
        "Written by `python -m benchmarks report`. Nothing was trained after pruning but where it says so."
    )
    return "\n".join(
        [
            *lines,
            *minilm(found),
            *trained(found),
            *frontier(found),
            *digits(found),
            *resnet8(found),
            *int8(found),
            *mixed(found),
            *activations(found),
            *weights(found),
        ]
    )


def paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, 110), ""]


def minilm(found: dict) -> list[str]:
    lines = ["## all-MiniLM-L6-v2", ""]
    lines += paragraph(
        "Mean cosine between the sentence embeddings of the pruned and of the dense network on 500 texts, "
        "pruned with 256 others; `-` behind a method: without least squares afterwards."
    )
    for layers, text in MINILM.items():
        results = [r for r in found.get("minilm", []) if r["layers"] == layers]
        if not results:
            continue
        patterns = sorted({r["pattern"] for r in results}, key=_pattern)
        lines += [f"{text}:", "", *table(["method", *patterns])]
        for method in sorted({r["method"] for r in results}):
            cells = [_best(results, method, pattern) for pattern in patterns]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _pattern(text: str) -> tuple:
    """Fewer zeros first, then longer groups, then larger blocks."""
    name, _, block = text.partition("x")
    n, _, m = name.partition(":")
    return (-int(n) / int(m), int(m), int(block or 1)) if m else (0, 0, 0)


def _best(results: list[dict], method: str, pattern: str) -> str:
    """Of several dampings the best."""
    of = [r["cosine"] for r in results if (r["method"], r["pattern"]) == (method, pattern)]
    return f"{max(of):.3f}" if of else "-"


def trained(found: dict) -> list[str]:
    rows = sorted(found.get("trained", []), key=lambda r: _pattern(r["pattern"]))
    if not rows:
        return []
    lines = ["## Trained to the pattern", ""]
    lines += paragraph(
        "all-MiniLM-L6-v2 after `examples/minilm/distil.py`, which lets all 36 linear layers of the encoder "
        "learn from the dense network, on doc strings and comments of the standard library and on two cores, "
        "with fewer steps where other work shared them. *Start* is in one shot, by SparseGPT; *cosine* is "
        "that of the compiled network, on sentences of modules that were held out. *Speed* is that of the "
        "whole network over the dense one, both compiled by sparsec and run by turns on one thread, on "
        "64 tokens."
    )
    lines += table(["pattern", "minutes", "steps", "start", "cosine", "ms", "dense ms", "speed"])
    for r in rows:
        cells = [f"{r['seconds'] / 60:.0f}", str(r["steps"]), f"{r['start']:.3f}", f"{r['cosine']:.3f}"]
        cells += [f"{r['ms']:.2f}", f"{r['dense_ms']:.2f}", f"{r['speed']:.2f}x"]
        lines.append(f"| {r['pattern']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def frontier(found: dict) -> list[str]:
    rows = found.get("frontier", [])
    if not rows:
        return []
    lines = ["## Speed against accuracy", ""]
    lines += paragraph(
        "all-MiniLM-L6-v2 once more: a pattern for each layer out of those named, chosen for a latency. "
        "*Speed* is that of the whole network over the dense one, both compiled by sparsec and run by turns "
        "on one thread; *cosine* is on the 500 texts."
    )
    lines += [
        "![](frontier.svg)",
        "",
        *table(["patterns", "asked latency", "speed", "cosine", "layers"]),
    ]
    for r in rows:
        layers = ", ".join(f"{count} {pattern}" for pattern, count in r["layers"].items())
        lines.append(
            f"| {r['patterns']} | {r['latency']} | {r['speed']:.2f}x | {r['cosine']:.3f} | {layers} |"
        )
    return [*lines, ""]


def frontier_plot(found: dict):
    """Cosine over speed; dotted: at 1.2x the speed of dense at least 0.95 is asked."""
    rows = sorted(found.get("frontier", []), key=lambda r: r["speed"])
    if not rows:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2))
    axes = figure.subplots()
    axes.plot([1, *(r["speed"] for r in rows)], [1, *(r["cosine"] for r in rows)], "o-", color="#08519c")
    axes.axvline(1.2, color="black", linewidth=0.5, linestyle=":")
    axes.axhline(0.95, color="black", linewidth=0.5, linestyle=":")
    axes.set_xlabel("speed over the dense network, compiled alike")
    axes.set_ylabel("mean cosine to its embedding")
    axes.set_title("all-MiniLM-L6-v2, one shot")
    axes.grid(linewidth=0.3)
    return figure


def digits(found: dict) -> list[str]:
    rows = found.get("digits", [])
    if not rows:
        return []
    lines = ["## Handwritten digits", ""]
    lines += paragraph("Share of 797 labels that are right, in percent; the networks have not seen them.")
    for network in dict.fromkeys(r["network"] for r in rows):
        own = [r for r in rows if r["network"] == network]
        patterns = sorted({r["pattern"] for r in own}, key=_pattern)
        lines += [f"`{network}`, dense {100 * own[0]['dense']:.1f}:", "", *table(["method", *patterns])]
        for method in sorted({r["method"] for r in own}):
            cells = {r["pattern"]: f"{100 * r['pruned']:.1f}" for r in own if r["method"] == method}
            lines.append(f"| {method} | " + " | ".join(cells.get(p, "-") for p in patterns) + " |")
        lines.append("")
    return lines


def resnet8(found: dict) -> list[str]:
    rows = found.get("resnet8", [])
    if not rows:
        return []
    sure = [a["sure"] for a in rows[0]["agreement"]]
    lines = ["## MLPerf Tiny's ResNet-8", ""]
    lines += paragraph(
        "Share of 1,000 crops of photographs for which the pruned network gives the dense one's answer, in "
        "percent, by how sure the dense one is at least; such crops seldom show what it was trained on, so "
        f"on half of them it is less sure than {rows[0]['median_confidence']}. *Error* is the mean squared "
        "error of a layer's output."
    )
    lines += table(["pattern", "sweeps", "images", *(f"sure {s:.2f}" for s in sure), "error"])
    for r in rows:
        cells = " | ".join(f"{100 * a['equal']:.1f}" for a in r["agreement"])
        lines.append(f"| {r['pattern']} | {r['sweeps']} | {r['images']} | {cells} | {r['error']:.4f} |")
    return [*lines, ""]


def int8(found: dict) -> list[str]:
    rows = found.get("int8", [])
    if not rows:
        return []
    lines = ["## int8", ""]
    lines += paragraph(
        "Networks quantised with calibration data alone, in ONNX Runtime. *cosine*: mean between the outputs "
        "and those in float32, of MiniLM the sentence embeddings of 500 texts. *answers*: share in percent "
        "that is equal to the answer in float32, or of labels that are right (in float32). `plain` takes "
        "ranges from the least to the largest value and rounds weights to the nearest; `published` is the "
        "file of MLPerf Tiny; `jointly` prunes and rounds on one least-squares problem, to be compared with "
        "rounding what pruning has left. ResNet-8 reads crops of photographs as above, keyword spotter and "
        "autoencoder smooth random spectra."
    )
    lines += table(["network", "pattern", "quantised", "cosine", "answers", "layers in int8"])
    for r in rows:
        cosine = f"{r['cosine']:.4f}" if "cosine" in r else "-"
        answers = f"{100 * r['equal']:.1f}" if "equal" in r else "-"
        if "right" in r:
            answers = f"{100 * r['right']:.1f} ({100 * r['dense']:.1f})"
        name = NETWORKS.get(r["network"], r["network"])
        lines.append(f"| {name} | {r['pattern']} | {r['way']} | {cosine} | {answers} | {r['layers']} |")
    return [*lines, ""]


def activations(found: dict) -> list[str]:
    rows = found.get("activations", [])
    if not rows:
        return []
    lines = ["## Other grids for activations", ""]
    lines += paragraph(
        f"all-MiniLM-L6-v2 in int8 with {rows[0]['texts']} texts, simulated in ONNX Runtime: mean and least "
        "cosine of the embeddings of 500 others. Inputs of layers are rounded *per tensor*, which is what "
        "sparsec does, *per token* with a range for each row, or not at all (*float*); the others round the "
        "probabilities behind softmax, too, which sparsec leaves in float32: in steps of 1/255, to powers of "
        "two in 4 bits, to powers of the root of two in 5."
    )
    lines += table(["activations", "cosine", "least"])
    for r in sorted(rows, key=lambda r: -r["cosine"]):
        lines.append(f"| {r['way']} | {r['cosine']:.4f} | {r['least']:.4f} |")
    return [*lines, ""]


def mixed(found: dict) -> list[str]:
    rows = found.get("mixed", [])
    if not rows:
        return []
    lines = ["## A precision for each layer", ""]
    lines += paragraph(
        "bfloat16, int8 or float32 for each layer, the fastest that keeps a budget of error, beside one "
        "precision throughout. *error*: largest change of an output relative to its scale, *cosine*: mean; "
        "of the compiled model, on a quarter of the data that was held out. *time* of one run on one thread, "
        "*share* of that in float32. Texts have 64 tokens, padding left out; ResNet-8 reads crops as above."
    )
    lines += table(["network", "budget", "error", "cosine", "time", "share", "layers"])
    for r in rows:
        layers = ", ".join(f"{count} {form}" for form, count in sorted(r["layers"].items()) if count)
        name = NETWORKS.get(r["network"], r["network"])
        scores = f"{r['error']:.4f} | {r['cosine']:.5f} | {r['ms']:.3g} ms | {r['share']:.2f}"
        lines.append(f"| {name} | {r['budget']} | {scores} | {layers} |")
    return [*lines, ""]


def weights(found: dict) -> list[str]:
    rows = found.get("weights", [])
    if not rows:
        return []
    lines = ["## Weights of 8 and of 4 bits", ""]
    lines += paragraph(
        "all-MiniLM-L6-v2 with the weights of its 36 linear layers rounded, in groups of 64 input channels, "
        "of 32 at 4 bits, and activations in float32: to the *nearest*, or *fitted* with 256 texts. Mean and "
        "least cosine of the embeddings of 500 other texts."
    )
    lines += table(["pattern", "bits", "rounded", "cosine", "least"])
    for r in rows:
        lines.append(f"| {r['pattern']} | {r['bits']} | {r['way']} | {r['cosine']:.4f} | {r['least']:.4f} |")
    return [*lines, ""]
