"""Speed of the x86 contraction kernels, against the core's own multiply-add peak, pinned to one core.

    python benchmarks/kernels.py [--level v3 v4] [--only REGEX] [--rounds 5]

Prints effective GFLOP/s (a pruned weight counts as if it were dense), the percentage of the peak of the level
(of useful work for N:M: pruned products do not count), and the time to lower and compile.  The peak is
measured by a loop of independent multiply-adds on registers; rounds of all kernels and the peak are
interleaved, and the best of each counts.
"""

import argparse
import os
import re
import time
from dataclasses import dataclass

os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import tvm
from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction import Gemm, conv
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import X86_LEVELS, Cpu

GEMMS = [
    (128, 768, 3072), (128, 3072, 768), (512, 1024, 1024), (3136, 64, 256), (49, 512, 2048), (197, 384, 1536),
    (16, 768, 3072), (4, 768, 3072), (1, 768, 768), (1, 4096, 4096), (1, 768, 50257),
]  # fmt: skip
PATTERNS = [Pattern(2, 4, 32), Pattern(1, 4, 32), Pattern(2, 4, 16), Pattern(2, 4, 4), Pattern(2, 4),
            Pattern(1, 4), Pattern(2, 8)]  # fmt: skip
SAME = ((1, 1), (1, 1), (1, 1, 1, 1))
#: batch, height, width, in, out, k_h, k_w, strides, dilations, pads, groups
CONVS = [
    (1, 56, 56, 64, 64, 3, 3, *SAME), (1, 28, 28, 128, 128, 3, 3, *SAME), (1, 14, 14, 256, 256, 3, 3, *SAME),
    (1, 7, 7, 512, 512, 3, 3, *SAME), (1, 224, 224, 3, 64, 7, 7, (2, 2), (1, 1), (3, 3, 3, 3)),
    (1, 56, 56, 64, 256, 1, 1), (1, 14, 14, 1024, 256, 1, 1),
    (1, 56, 56, 128, 128, 3, 3, (2, 2), (1, 1), (1, 1, 1, 1)), (1, 112, 112, 16, 96, 1, 1),
    (1, 32, 32, 16, 16, 3, 3, *SAME),
    (1, 112, 112, 32, 32, 3, 3, *SAME, 32), (1, 56, 56, 144, 144, 3, 3, *SAME, 144),
    (1, 14, 14, 576, 576, 3, 3, (2, 2), (1, 1), (1, 1, 1, 1), 576),
]  # fmt: skip
MATMULS = {
    "attention-scores": ((12,), (12,), 128, 64, 128, (), (0, 2, 1)),
    "attention-values": ((12,), (12,), 128, 128, 64),
    "scores-197": ((6,), (6,), 197, 64, 197, (), (0, 2, 1)),
    "values-197": ((6,), (6,), 197, 197, 64),
    "scores-in-place": ((1, 12), (1, 12), 128, 64, 128, (0, 2, 1, 3), (0, 3, 1, 2)),
}


@dataclass
class Case:
    name: str
    level: str
    flops: float
    useful: float
    compile_s: float
    run: object
    best: float = float("inf")


def peak_function(cpu: Cpu, steps: int) -> tirx.PrimFunc:
    """``steps`` times 12 independent multiply-adds on registers."""
    y = tirx.decl_buffer([tir.i64(12 * cpu.lanes)], "float32", name="Y")
    acc = [tir.local(f"acc{r}", cpu.lanes) for r in range(12)]
    at = tir.i64(0)

    def each(value):
        return [tir.vector_store(b, value(b, r), at, lanes=cpu.lanes) for r, b in enumerate(acc)]

    def old(b):
        return tir.vector_load(b, at, lanes=cpu.lanes)

    factor = tirx.Var("factor", f"float32x{cpu.lanes}")
    body = [
        *tir.alloc(acc),
        tirx.Bind(factor, tir.vector_load(y, at, lanes=cpu.lanes)),
        *each(lambda b, r: tir.vector_load(y, tir.i64(r * cpu.lanes), lanes=cpu.lanes)),
        tir.loop("k", steps, lambda k: tir.seq(each(lambda b, r: old(b) * factor + factor))),
        *(tir.vector_store(y, old(b), tir.i64(r * cpu.lanes), lanes=cpu.lanes) for r, b in enumerate(acc)),
    ]
    return tirx.PrimFunc([y], tir.seq(body)).with_attrs({tir.NOALIAS: True})


def build(func: tirx.PrimFunc, cpu: Cpu):
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    return tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")["main"]


def make(name: str, level: str, spec, macs: float, kept: float, arrays: list) -> Case:
    cpu = X86_LEVELS[level]
    start = time.perf_counter()
    run = build(rule(spec.prim_func(), cpu), cpu)
    took = time.perf_counter() - start
    tensors = [tvm.runtime.tensor(a) for a in (*arrays, np.zeros(spec.y_shape, "f"))]
    return Case(name, level, 2 * macs, 2 * macs * kept, took, lambda: run(*tensors))


def pruned(rng, weight: np.ndarray, pattern: Pattern) -> np.ndarray:
    """``weight [O, ..., C]`` with random positions pruned to the pattern; C is a multiple of m."""
    if pattern.dense:
        return weight
    out, channels = weight.shape[0], weight.shape[-1]
    blocks = -(-out // pattern.block)
    order = rng.random((blocks, *weight.shape[1:-1], channels // pattern.m, pattern.m)).argsort(-1)
    mask = np.repeat((order < pattern.n).reshape(blocks, *weight.shape[1:-1], channels), pattern.block, 0)
    return weight * mask[:out]


def cases(level: str, only: re.Pattern) -> list[Case]:
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.standard_normal(shape, dtype="f")

    found = []
    for pattern in (DENSE, *PATTERNS):
        kept = pattern.n / pattern.m
        label = "dense" if pattern.dense else f"{pattern.n}:{pattern.m}/{pattern.block}"
        for m, k, n in GEMMS:
            name = f"gemm {m}x{k}x{n} {label}"
            if only.search(name):
                spec = Gemm((m,), k, n, pattern)
                weight = pruned(rng, random(n, k), pattern)
                found.append(make(name, level, spec, m * k * n, kept, [random(m, k), *spec.pack(weight)]))
        for geometry in CONVS:
            groups = geometry[10] if len(geometry) > 10 else 1
            kernel = f"{geometry[5]}x{geometry[6]}"
            name = (
                f"conv {geometry[1]}x{geometry[2]}x{geometry[3]} {kernel} -> {geometry[4]} g{groups} {label}"
            )
            if not only.search(name) or not pattern.dense and (groups > 1 or geometry[3] < pattern.m):
                continue
            full = (*geometry, *((1, 1), (1, 1), (0, 0, 0, 0), 1)[len(geometry) - 7 :])
            spec = conv(*full, pattern)
            weight = random(spec.out_c, spec.k_h, spec.k_w, spec.in_c // groups)
            macs = np.prod(spec.y_shape) * spec.k_h * spec.k_w * (spec.in_c // groups)
            arrays = [random(*spec.x_shape), *spec.pack(pruned(rng, weight, pattern))]
            found.append(make(name, level, spec, float(macs), kept, arrays))
    for label, fields in MATMULS.items():
        if only.search(f"matmul {label}"):
            spec = BatchMatmul(*fields)
            macs = spec.batches * spec.m * spec.k * spec.n
            arrays = [random(*spec.a_shape), random(*spec.b_shape)]
            found.append(make(f"matmul {label}", level, spec, macs, 1.0, arrays))
    return found


def timed(run, seconds: float = 0.02) -> float:
    """The best of as many runs as fit ``seconds``, at least two."""
    best, until, count = float("inf"), time.perf_counter() + seconds, 0
    while count < 2 or time.perf_counter() < until:
        start = time.perf_counter()
        run()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", nargs="+", default=["v3", "v4"], choices=list(X86_LEVELS))
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for level in args.level:
        cpu, steps = X86_LEVELS[level], 100_000
        peak, buffer = (
            build(peak_function(cpu, steps), cpu),
            tvm.runtime.tensor(np.zeros(12 * cpu.lanes, "f")),
        )
        found = cases(level, args.only)
        best = float("inf")
        for _ in range(args.rounds):
            best = min(best, timed(lambda peak=peak, buffer=buffer: peak(buffer)))
            for case in found:
                case.best = min(case.best, timed(case.run))
        top = 2 * 12 * cpu.lanes * steps / best
        print(f"{level}: peak {top / 1e9:.0f} GFLOP/s")
        for case in found:
            rate, useful = case.flops / case.best, case.useful / case.best
            print(
                f"  {case.name:44s} {case.best * 1e6:10.1f} us {rate / 1e9:7.0f} GFLOP/s"
                f" {100 * useful / top:5.0f} % of peak, compiled in {case.compile_s:.2f} s"
            )


if __name__ == "__main__":
    main()
