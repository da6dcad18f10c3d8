"""What a kernel of the bundle computes: its inputs, and samples of the result in float64.  Needs numpy alone.

A problem is a plain dict of the bundle's plan: ``op``, its sizes, and how the kernel is launched.
"""

import numpy as np

from sparsec.schedules.cuda import fragments
from sparsec.schedules.cuda.picks import Picks
from sparsec.schedules.layout import Pattern, pack

_SAMPLES = 16
#: What the rounding of float32 may do to a sum of products, relative to the largest result.
TOLERANCE = 1e-5
#: What the rounding of shares to float16 may do.
ROUNDED_TOLERANCE = 2e-3


def inputs(problem: dict) -> tuple[list[np.ndarray], tuple[int, ...], np.ndarray]:
    """The arrays of the kernel's parameters but the last, the shape of the result, the weight or None."""
    rng = np.random.default_rng(0)
    return _INPUTS[problem["op"]](problem, rng)


def expected(problem: dict, arrays: list[np.ndarray], weight) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of some rows, and these rows of the result in float64."""
    if problem["op"] == "attention":
        return _attended(problem, *(a.astype(np.float64) for a in arrays))
    x = arrays[0].reshape(-1, arrays[0].shape[-1])
    some = np.unique(np.linspace(0, len(x) - 1, _SAMPLES).astype(int))
    chosen = x[some].astype(np.float64)
    if weight is not None:
        return some, chosen @ weight.astype(np.float64).T
    return some, _NORMALISERS[problem["op"]](chosen)


def _tensor_gemm(problem: dict, rng):
    m, k, n, sparse = (problem[name] for name in ("m", "k", "n", "sparse"))
    x = rng.standard_normal((m, k), np.float32).astype(np.float16)
    if problem["picked"]:
        return _picked(x, Picks(*problem["picked"]), n, rng)
    # Packed arrays at random are weights, too, and far sooner made than by packing.
    number = fragments.NUMBERS["float16"]
    (shape, _), *more = fragments.shapes(sparse, n, k, number)
    packed = [
        rng.standard_normal((*shape[:-1], shape[-1] * 2), np.float32).astype(np.float16).view(np.uint32)
    ]
    if more:
        pairs = np.array([a | b << 2 for a in range(4) for b in range(a + 1, 4)], np.uint32)
        chosen = pairs[rng.integers(0, len(pairs), (*more[0][0], 8))]
        packed.append(np.bitwise_or.reduce(chosen << (np.arange(8, dtype=np.uint32) * 4), axis=-1))
    return [x, *packed], (m, n), fragments.unpack(sparse, tuple(packed), n, k, number)


def _picked(x: np.ndarray, picks: Picks, n: int, rng):
    k = x.shape[1]
    keep = rng.random((-(-n // (16 * picks.share)), k // picks.m, picks.m)).argsort(axis=-1) < picks.n
    weight = rng.standard_normal((n, k), np.float32)
    weight *= np.repeat(keep.reshape(-1, k), 16 * picks.share, axis=0)[:n]
    number = fragments.NUMBERS["float16"]
    packed = picks.pack(weight, number)
    return [x, *packed], (x.shape[0], n), picks.unpack(packed, n, k, number)


def _gemm(problem: dict, rng):
    m, k, n = (problem[name] for name in ("m", "k", "n"))
    pattern = Pattern(*problem["pattern"])
    x, weight = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    if not pattern.dense:
        groups = rng.random((n // pattern.block, k // pattern.m, pattern.m)).argsort(axis=-1) < pattern.n
        weight *= np.repeat(groups.reshape(-1, k), pattern.block, axis=0)
    arrays = [a.reshape(a.shape[0], *a.shape[2:]) for a in pack(pattern, weight[:, None])]
    return [x, *arrays], (m, n), weight


def _rows(problem: dict, rng):
    shape = tuple(problem["shape"])
    return [rng.standard_normal(shape, np.float32)], shape, None


def _attention(problem: dict, rng):
    heads, m, n, d = (problem[name] for name in ("heads", "m", "n", "d"))
    arrays = [rng.standard_normal((heads, rows, d), np.float32) for rows in (m, n, n)]
    if problem["half"]:
        arrays = [a.astype(np.float16) for a in arrays]
    return arrays, (heads, m, d), None


def _attended(problem: dict, q, k, v) -> tuple[np.ndarray, np.ndarray]:
    heads, m, d = q.shape
    some = np.unique(np.linspace(0, heads * m - 1, _SAMPLES).astype(int))
    normalise = _NORMALISERS[problem["normaliser"]]
    shares = [normalise(q[i // m, i % m] @ k[i // m].T * d**-0.5) @ v[i // m] for i in some]
    return some, np.stack(shares)


def tolerance(problem: dict) -> float:
    """The error of a right kernel at most, relative to the largest result."""
    return ROUNDED_TOLERANCE if problem.get("half") else TOLERANCE


def work(problem: dict) -> int:
    """Multiply-adds, or elements where there are none."""
    if problem["op"] == "attention":
        return 2 * problem["heads"] * problem["m"] * problem["n"] * problem["d"]
    if "shape" in problem:
        return int(np.prod(problem["shape"]))
    return problem["m"] * problem["k"] * problem["n"]


_INPUTS = {
    "tensor_gemm": _tensor_gemm,
    "gemm": _gemm,
    "softmax": _rows,
    "sparsemax": _rows,
    "entmax": _rows,
    "attention": _attention,
}


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _sparsemax(x: np.ndarray) -> np.ndarray:
    """By sorting (Martins and Astudillo 2016, algorithm 1)."""
    x = x - x.max(-1, keepdims=True)
    z = -np.sort(-x, axis=-1)
    total = z.cumsum(-1)
    support = (1 + np.arange(1, x.shape[-1] + 1) * z > total).sum(-1, keepdims=True)
    tau = (np.take_along_axis(total, support - 1, -1) - 1) / support
    return np.maximum(x - tau, 0)


def _entmax(x: np.ndarray) -> np.ndarray:
    """With alpha 1.5, by halving (Peters, Niculae and Martins 2019)."""
    x = (x - x.max(-1, keepdims=True)) / 2
    low, high = np.full((*x.shape[:-1], 1), -1.0), np.zeros((*x.shape[:-1], 1))
    for _ in range(50):
        middle = (low + high) / 2
        enough = (np.maximum(x - middle, 0) ** 2).sum(-1, keepdims=True) >= 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return np.maximum(x - low, 0) ** 2


_NORMALISERS = {"softmax": _softmax, "sparsemax": _sparsemax, "entmax": _entmax}
