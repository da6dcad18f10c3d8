"""What is asked of the numbers, in one place; every ratio is of two engines in one row.

A row is about one precision; its peers compute in the same.  The best one in fp32 is the faster of ONNX
Runtime and OpenVINO.
"""

from dataclasses import dataclass

#: Of each precision: our engine, its peers.  OpenVINO's default is bf16 where the CPU has it.
PRECISIONS = {
    "fp32": ("sparsec", ("onnxruntime", "openvino_fp32")),
    "bf16": ("sparsec_bf16", ("openvino",)),
    "int8": ("sparsec_int8", ("onnxruntime", "openvino")),
}
LARGE = ("bert", "minilm", "vit_s16", "resnet50")


@dataclass(frozen=True)
class Goal:
    """Our p50 at a ``precision`` is at most ``ratio`` times that of ``against``.

    ``against``: ``peer``, the best one of that precision, or an engine.
    """

    variant: str
    models: tuple[str, ...]  # empty: every model
    ratio: float
    against: str = "peer"
    precision: str = "fp32"


#: The first row that fits a model and a variant holds, for each ``against`` and precision.
GOALS = (
    Goal("dense", ("gpt2_decode",), 0.80),
    Goal("dense", (), 1.00),
    Goal("2:4x32", ("gpt2_decode",), 0.50),
    Goal("2:4x32", LARGE, 0.60),
    Goal("2:4x4", LARGE, 0.63),  # within 5 % of block 32
    Goal("1:4x32", LARGE, 0.42),
    Goal("2:4x1", LARGE, 0.72),
    Goal("2:4x1", LARGE, 1.00, "deepsparse"),
    Goal("90%", (*LARGE, "mobilenet_v2"), 1.00, "deepsparse"),
    Goal("dense", (*LARGE, "mobilenet_v2"), 1.00, precision="bf16"),
    Goal("2:4x32", LARGE, 0.62, precision="bf16"),
    Goal("dense", (*LARGE, "mobilenet_v2"), 1.00, precision="int8"),
    Goal("2:4x32", LARGE, 0.65, precision="int8"),
)
#: Two threads are this much faster than one, on the large models.
SCALING, SCALED = 1.8, (*LARGE, "gpt2_prefill")
#: Seconds to compile on two cores; the peak of memory is at most 3 times the weights and 1 GB.
COMPILE_SECONDS = {"bert": 60, "resnet50": 45, "minilm": 20}

#: Kernels: family -> what is asked of it.  GEMM over the best dense peer, by pattern, from 128 rows on.
GEMM_SPEEDUP = {
    "2:4x1": 1.45, "1:4x1": 2.7, "1:8x1": 5.0,
    "2:4x4": 1.85, "1:4x4": 3.5, "1:8x4": 6.5,
    **{f"2:4x{block}": 1.95 for block in (16, 32, 64)},
    **{f"1:4x{block}": 3.8 for block in (16, 32, 64)},
    **{f"1:8x{block}": 7.3 for block in (16, 32, 64)},
}  # fmt: skip
GEMM_SHARE_OF_PEAK = 0.93  # dense
#: Of int8 layers: dense, and useful products where 2:4 and 1:4 are to be 1.9 and 3.6 times as fast.
INT8_SHARE_OF_PEAK = {"dense": 0.9, "2:4x32": 0.9 * 1.9 / 2, "1:4x32": 0.9 * 3.6 / 4}
FEW_ROWS_SPEEDUP = {"2:4x1": 1.3, "2:4x4": 1.9, "2:4x16": 1.9, "2:4x32": 1.9, "2:4x64": 1.9}  # 16 rows
GEMV_SHARE_OF_DRAM = 0.90  # dense and 2:4
ROWS_SHARE_OF_COPY = 0.85  # softmax and its like, out of cache
SPARSEMAX_RATIO, SPARSEMAX_OVER_CHAIN = 1.3, 100  # of the best peer's softmax; over the exported chain


def precision_of(row: dict) -> str:
    return row.get("precision", "fp32")


def ours(row: dict) -> str:
    """Our engine in a row."""
    return PRECISIONS[precision_of(row)][0]


def asked(model: str, variant: str, precision: str = "fp32") -> list[Goal]:
    """The goals of a row, at most one for each ``against``."""
    found: dict[str, Goal] = {}
    for goal in GOALS:
        fits = (goal.variant, goal.precision) == (variant, precision)
        if fits and (not goal.models or model in goal.models):
            found.setdefault(goal.against, goal)
    return list(found.values())


def p50(row: dict, engine: str) -> float | None:
    """Milliseconds; None for an engine that did not run or whose result is wrong."""
    found = row["engines"].get(engine, {})
    return None if found.get("wrong") else found.get("p50_ms")


def best_peer(row: dict, suffix: str = "") -> float | None:
    times = [p50(row, peer + suffix) for peer in PRECISIONS[precision_of(row)][1]]
    return min((t for t in times if t is not None), default=None)


def ratio(row: dict, against: str = "peer") -> float | None:
    """Our p50 over that of ``against``; None where one is missing or wrong."""
    own = p50(row, ours(row))
    theirs = best_peer(row) if against == "peer" else p50(row, against)
    return None if own is None or theirs is None else own / theirs


def met(row: dict) -> list[tuple[Goal, float, bool]]:
    """Each goal of a model's row that was measured, with its ratio and whether it is met."""
    wanted = asked(row["model"], row["variant"], precision_of(row))
    found = [(goal, ratio(row, goal.against)) for goal in wanted]
    return [(goal, value, value <= goal.ratio) for goal, value in found if value is not None]
