"""The Markdown pages, made from the JSON and nothing else."""

import re
from pathlib import Path

from . import goals
from .results import FOLDER
from .rows import ENGINES

SHOWN = {
    "sparsec": "sparsec",
    "sparsec_bf16": "sparsec bf16",
    "sparsec_int8": "sparsec int8",
    "onnxruntime": "ONNX Runtime",
    "openvino_fp32": "OpenVINO fp32",
    "openvino": "OpenVINO default",
    "torch": "torch",
    "deepsparse": "DeepSparse",
    "iree": "IREE",
}
NONE = "-"


def write(found: dict, folder: Path = FOLDER) -> None:
    for name, make in PAGES.items():
        (folder / name).write_text(make(found))


def models(found: dict) -> str:
    lines = ["# Whole networks", "", *about(found, "models")]
    lines += [
        "Milliseconds, p50 (p90); engines by turns, each in a process of its own, stopped while another",
        "runs. *Ratio* is sparsec over the best dense peer, the faster of ONNX Runtime and OpenVINO fp32, on",
        "the same file in the same minute; *asked* is the goal of `benchmarks/goals.py`. All engines get the",
        "same pruned file; torch runs the dense network. OpenVINO's default takes bf16 where the CPU has it,",
        "and is the peer of our bf16. In int8 all engines get the same static QDQ model, and *error* is the",
        "distance to the network in float32.",
        "A number in *italics* belongs to a result that is wrong (beyond the tolerance of its precision).",
        "",
    ]
    outcomes = [(row, goal, value, ok) for row in found["models"] for goal, value, ok in goals.met(row)]
    reached = sum(ok for *_, ok in outcomes)
    lines += [f"**{reached} of {len(outcomes)} goals are met.**", ""]
    order = tuple(goals.PRECISIONS)
    sections = sorted({_section(r) for r in found["models"]}, key=lambda s: (*s[:3], order.index(s[3])))
    for target, batch, threads, precision in sections:
        counted = f"{threads} thread{'s' if threads > 1 else ''}"
        lower = f", {precision}" if precision != "fp32" else ""
        lines += [f"## {target}, batch {batch}, {counted}{lower}", ""]
        engines = ENGINES[precision]
        lines += table(
            ["model", "variant", *(SHOWN[e] for e in engines), "ratio", "asked", "met", "runs", "error"]
        )
        for row in found["models"]:
            if _section(row) == (target, batch, threads, precision):
                lines.append(model_line(row, engines))
        lines.append("")
    lines += scaling(found)
    failures = [
        f"- {row['model']} {row['variant']} batch {row['batch']}, {row['threads']} thread(s), {SHOWN[name]}: "
        + engine["failed"].replace("|", "/")
        for row in found["models"]
        for name, engine in row["engines"].items()
        if "failed" in engine
    ]
    return "\n".join([*lines, *(["## What did not run", "", *failures, ""] if failures else [])])


def _section(row: dict) -> tuple:
    return row["target"], row["batch"], row["threads"], goals.precision_of(row)


def model_line(row: dict, engines: tuple[str, ...]) -> str:
    value = goals.ratio(row)
    wanted = goals.asked(row["model"], row["variant"], goals.precision_of(row))
    asked = [f"<= {goal.ratio:.2f}{beside(goal)}" for goal in wanted]
    outcomes = [
        f"{'yes' if ok else 'no'}" + (f" ({value:.2f})" if goal.against != "peer" else "")
        for goal, value, ok in goals.met(row)
    ]
    ours = row["engines"].get(goals.ours(row), {})
    cells = [row["model"], row["variant"], *(time(row["engines"].get(engine)) for engine in engines)]
    cells += [number(value), ", ".join(asked) or NONE, ", ".join(outcomes) or NONE]
    cells += [str(ours.get("calls", NONE)), f"{ours['error']:.0e}" if "error" in ours else NONE]
    return line(cells)


def beside(goal: goals.Goal) -> str:
    """The engine that a goal is about, where that is not the best peer."""
    return f" {SHOWN[goal.against]}" if goal.against != "peer" else ""


def scaling(found: dict) -> list[str]:
    """Two threads over one, for engines measured on both."""
    plain = [row for row in found["models"] if goals.precision_of(row) == "fp32"]
    rows = {(r["model"], r["variant"], r["batch"], r["target"], r["threads"]): r for r in plain}
    engines = ["sparsec", "onnxruntime", "openvino_fp32", "deepsparse"]
    lines = ["## Two threads over one", "", f"Asked of the large models: {goals.SCALING}x.", ""]
    lines += table(["model", "variant", "batch", "target", *(SHOWN[e] for e in engines), "met"])
    count = len(lines)
    for (*key, threads), one in rows.items():
        two = rows.get((*key, 2))
        if threads != 1 or two is None:
            continue
        times = [(goals.p50(one, e), goals.p50(two, e)) for e in engines]
        gains = [a / b if a and b else None for a, b in times]
        asked = key[0] in goals.SCALED and gains[0] is not None
        met = ("yes" if gains[0] >= goals.SCALING else "no") if asked else NONE
        lines.append(line([*map(str, key), *(number(g, "x") for g in gains), met]))
    return [*lines, ""] if len(lines) > count else []


def kernels(found: dict) -> str:
    lines = ["# Single operators", "", *about(found, "kernels"), "One thread; a time includes the call.", ""]
    (peaks,) = found["peaks"][-1:] or [None]
    if peaks is None:
        return "\n".join(lines)
    giga = {
        kind: ", ".join(f"{k} {v / 1e9:.0f}" for k, v in peaks[kind].items()) for kind in ("read", "copy")
    }
    lines += [
        f"This core: {peaks['flops'] / 1e9:.0f} GFLOP/s of multiply-adds; reads {giga['read']} GB/s; copies",
        f"(bytes read and written) {giga['copy']} GB/s, DRAM with non-temporal stores "
        f"{peaks['stream']['DRAM'] / 1e9:.0f} GB/s.",
        "",
        "*Share* is useful work (pruned products do not count) of the multiply-add peak for GEMM,",
        "convolution and attention, of four times that peak for int8; kept weights and their indices of",
        "the DRAM read rate for GEMV, bytes in and out of a copy of the same size for rows. *Over peer* is",
        "the best dense peer's time over ours; for int8 peers run the same QDQ file. For sparsemax, entmax",
        "and the soft threshold the peer runs softmax and Relu, *chain* is ONNX Runtime on the operator",
        "itself.",
        "",
    ]
    for target in sorted({row["target"] for row in found["kernels"]}):
        for family in ("gemm", "gemv", "conv", "attention", "rows", "int8"):
            rows = [r for r in found["kernels"] if r["family"] == family and r["target"] == target]
            if rows:
                lines += [f"## {family}, {target}", ""]
                head = [
                    "case",
                    "sparsec",
                    "ONNX Runtime",
                    "OpenVINO fp32",
                    "share",
                    "over peer",
                    "chain",
                    "asked",
                ]
                lines += [*table([*head, "met"]), *(kernel_line(row, peaks) for row in rows), ""]
    return "\n".join(lines)


def kernel_line(row: dict, peaks: dict) -> str:
    suffix = f"_{row['rival']}" if "rival" in row else ""
    engines = row["engines"]
    share, speed, over_chain = kernel_measures(row, peaks)
    asked, met = kernel_goal(row, share, speed, over_chain)
    cells = [
        row["name"],
        *(time(engines.get(e)) for e in ("sparsec", "onnxruntime" + suffix, "openvino_fp32" + suffix)),
    ]
    cells += [percent(share), number(speed, "x"), number(over_chain, "x"), asked, met]
    return line(cells)


def kernel_measures(row: dict, peaks: dict) -> tuple[float | None, float | None, float | None]:
    """Share of the limit, speed over the best peer, speed over the chain itself."""
    suffix = f"_{row['rival']}" if "rival" in row else ""
    ours, peer = goals.p50(row, "sparsec"), goals.best_peer(row, suffix)
    if not ours:
        return None, None, None
    if row["family"] in ("gemm", "conv", "attention", "int8"):
        peak = peaks["flops"] * (4 if row["family"] == "int8" else 1)
        share = row["flops"] * kept(row["variant"]) / (ours * 1e-3) / peak
    else:
        limit = peaks["read"]["DRAM"] if row["family"] == "gemv" else copy_rate(row["moved"], peaks)
        share = row["moved"] / (ours * 1e-3) / limit
    chain = goals.p50(row, "onnxruntime") if suffix else None
    return share, peer / ours if peer else None, chain / ours if chain else None


def copy_rate(moved: float, peaks: dict) -> float:
    """Bytes a second of a copy that moves as much, in the smallest cache of a usual core that holds it."""
    for level, most in (("L1", 2**15), ("L2", 2**20), ("L3", 2**24)):
        if moved <= most:
            return peaks["copy"][level]
    return max(peaks["copy"]["DRAM"], peaks["stream"]["DRAM"])


def kernel_goal(row: dict, share, speed, over_chain) -> tuple[str, str]:
    """What is asked of a kernel, and whether it is met; dashes where nothing is."""
    family, variant, first = row["family"], row["variant"], row["name"].split()[0]
    if family == "gemm" and variant == "dense" and " 16x" not in row["name"]:
        return verdict(f">= {goals.GEMM_SHARE_OF_PEAK:.0%} of peak", share, goals.GEMM_SHARE_OF_PEAK)
    if family == "gemm":
        wanted = (goals.FEW_ROWS_SPEEDUP if " 16x" in row["name"] else goals.GEMM_SPEEDUP).get(variant)
        return verdict(f">= {wanted}x", speed, wanted) if wanted else (NONE, NONE)
    if family == "gemv" and (variant == "dense" or variant.startswith("2:4")):
        return verdict(f">= {goals.GEMV_SHARE_OF_DRAM:.0%} of DRAM", share, goals.GEMV_SHARE_OF_DRAM)
    if family == "int8" and re.search(r" (1|4|16)x\d", row["name"]):
        return NONE, NONE  # few rows: the weights' bytes are the limit
    if family == "int8":
        wanted = goals.INT8_SHARE_OF_PEAK[variant]
        return verdict(f">= {wanted:.0%} of peak", share, wanted)
    if first == "entmax":
        return NONE, NONE  # what is asked of sparsemax is not of it
    if first == "sparsemax":
        wanted, far = 1 / goals.SPARSEMAX_RATIO, goals.SPARSEMAX_OVER_CHAIN
        both = None if speed is None or over_chain is None else min(speed / wanted, over_chain / far)
        return verdict(f">= {wanted:.2f}x, {far}x the chain", both, 1.0)
    if family == "rows" and row["moved"] > 2**27:
        wanted = goals.ROWS_SHARE_OF_COPY
        both = None if speed is None else min(share / wanted, speed)
        return verdict(f">= 1x, {wanted:.0%} of copy", both, 1.0)
    return verdict(">= 1x", speed, 1.0) if family == "rows" else (NONE, NONE)


def verdict(text: str, value: float | None, wanted: float) -> tuple[str, str]:
    return text, NONE if value is None else "yes" if value >= wanted else "no"


def kept(variant: str) -> float:
    """The share of the weights that a variant's name says is kept."""
    if variant == "dense":
        return 1.0
    if variant.endswith("%"):
        return 1 - float(variant[:-1]) / 100
    n, m = variant.split("x")[0].split(":")
    return int(n) / int(m)


def starts(found: dict) -> str:
    lines = ["# Cold starts and compilation", "", *about(found, "starts")]
    lines += [
        "Import, load and first run in a fresh process, one thread, the best of three; peak resident memory.",
        "",
    ]
    engines = ["sparsec", "onnxruntime", "openvino_fp32", "deepsparse", "iree"]
    lines += table(["model", *(SHOWN[e] for e in engines), "ahead of ONNX Runtime and IREE"])
    for row in found["starts"]:
        times = {e: row["engines"].get(e, {}).get("cold_seconds") for e in engines}
        cells = [
            NONE if times[e] is None else f"{times[e]:.2f} s, {row['engines'][e]['peak_bytes'] / 1e6:.0f} MB"
            for e in engines
        ]
        rivals = [times[e] for e in ("onnxruntime", "iree") if times[e] is not None]
        ahead = NONE if times["sparsec"] is None or not rivals else yes(times["sparsec"] <= min(rivals))
        lines.append(line([row["model"], *cells, ahead]))
    lines += ["", "## Compilation", "", "Without tuning; the peak of the largest process.", ""]
    lines += table(
        [
            "model",
            "variant",
            "target",
            "seconds",
            "CPU seconds",
            "asked",
            "peak",
            "asked",
            "met",
            "artifact",
            "ONNX",
        ]
    )
    for row in found["models"]:
        plain = goals.precision_of(row) == "fp32"
        if plain and row["threads"] == 1 and row["batch"] == 1 and "compile_seconds" in row:
            lines.append(compile_line(row))
    return "\n".join([*lines, ""])


def compile_line(row: dict) -> str:
    limit, most = goals.COMPILE_SECONDS.get(row["model"]), 3 * row["onnx_bytes"] + 1e9
    within = row["compile_peak_bytes"] <= most and (limit is None or row["compile_seconds"] <= limit)
    cells = [row["model"], row["variant"], row["target"], f"{row['compile_seconds']:.1f}"]
    cells.append(f"{row['compile_cpu_seconds']:.1f}")
    cells += [f"< {limit}" if limit else NONE, megabytes(row["compile_peak_bytes"]), f"< {megabytes(most)}"]
    return line([*cells, yes(within), megabytes(row["bytes"]), megabytes(row["onnx_bytes"])])


def about(found: dict, table_name: str) -> list[str]:
    """Where and when the rows of a table were measured."""
    used = dict.fromkeys(row["run"] for row in found[table_name])
    runs = [found["runs"][key] for key in used]
    places = dict.fromkeys(
        f"{r['machine']}, {r['date']}: " + ", ".join(f"{k} {v}" for k, v in r["versions"].items())
        for r in runs
    )
    return ["Made by `make bench` from `results.json`.", "", *(f"- {place}" for place in places), ""]


def table(head: list[str]) -> list[str]:
    return [line(head), "|" + "---|" * len(head)]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def time(engine: dict | None) -> str:
    if engine is None:
        return NONE
    if "failed" in engine:
        return "failed"
    text = f"{engine['p50_ms']:.3g} ({engine['p90_ms']:.3g})"
    return f"*{text}*" if engine.get("wrong") else text


def number(value: float | None, unit: str = "") -> str:
    return NONE if value is None else f"{value:.2f}{unit}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB" if value < 1e7 else f"{value / 1e6:.0f} MB"


def yes(value: bool) -> str:
    return "yes" if value else "no"


PAGES = {"models.md": models, "kernels.md": kernels, "starts.md": starts}
