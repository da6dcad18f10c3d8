"""Everything that a machine with a GPU needs to check and time our kernels, in one folder made without a GPU.

python -m benchmarks.cuda.bundle FOLDER [--arch sm_90]
PYTHONPATH=FOLDER python FOLDER/bare.py FOLDER          there: numpy, and torch for its peers

The folder holds the kernels, every tile that may be the best for each size, as machine code; ``plan.json``,
how each is launched and what it computes; whole networks as artifacts, with an input and what ONNX Runtime
makes of it; and the few files of Python that run it.  They are copies of files here, in packages without the
rest of sparsec, so that the other machine needs no TVM.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import tvm

from sparsec.compiler.cuda.kernels import Kernels, build_kernels
from sparsec.compiler.cuda.toolchain import toolchain
from sparsec.schedules.contraction import Gemm, packed_for
from sparsec.schedules.cuda import tensor_gemm, tensor_tile
from sparsec.schedules.cuda.target import ARCHITECTURES, Gpu
from sparsec.schedules.cuda.tile import with_tile
from sparsec.schedules.layout import DENSE, Pattern

from . import bundle_networks
from .catalogue import ROWS, attention

ROOT = Path(__file__).resolve().parent.parent.parent
#: Files that run on the other machine -> where they lie in the folder.
FILES = {
    "benchmarks/cuda/bare.py": "bare.py",
    "benchmarks/cuda/driver.py": "driver.py",
    "benchmarks/cuda/problems.py": "problems.py",
    "benchmarks/cuda/peers.py": "peers.py",
    "benchmarks/cuda/bare_networks.py": "bare_networks.py",
    "benchmarks/cuda/networks.py": "networks.py",
    "benchmarks/cuda/peer_networks.py": "peer_networks.py",
    "schedules/bits.py": "sparsec/schedules/bits.py",
    "schedules/layout.py": "sparsec/schedules/layout.py",
    "schedules/cuda/fragments.py": "sparsec/schedules/cuda/fragments.py",
    "schedules/cuda/picks.py": "sparsec/schedules/cuda/picks.py",
}
PACKAGES = ("sparsec", "sparsec/schedules", "sparsec/schedules/cuda")
#: Packages that go there whole.
COPIES = {"runtime": "sparsec_runtime", "tests/zoo": "zoo"}

SIZES = (1, 16, 64, 128, 512, 2048, 4096)
#: K and N of a product.
PROJECTIONS = ((4096, 4096), (768, 3072))
PATTERNS = (
    DENSE,
    Pattern(2, 4, 32),
    Pattern(1, 4, 32),
    Pattern(1, 8, 32),
    Pattern(2, 4, 4),
    Pattern(1, 8, 1),
)
#: n of m and bands that share them, of products on tensor cores whose lanes pick inputs.
PICKED = ((1, 4, 2), (2, 8, 2), (4, 16, 4))
#: Heads, queries and keys.
ATTENTION = ((12, 512, 512), (12, 2048, 2048), (12, 1, 2048), (12, 1, 8192), (12, 512, 8192))
Tile = tensor_tile.Tile
#: Beside the tiles that are chosen: other shapes of a warp's share, deeper and shallower pipelines.
MORE_TILES = (
    Tile(channels=64, tokens=16, warps_c=2, warps_t=1, warps_k=4, stages=3),
    Tile(channels=128, tokens=32, warps_c=4, warps_t=1, warps_k=1, stages=4),
    Tile(channels=128, tokens=64, warps_c=2, warps_t=2, warps_k=1, stages=3),
    Tile(channels=64, tokens=128, warps_c=2, warps_t=2, warps_k=1, stages=3),
    Tile(channels=128, tokens=128, warps_c=2, warps_t=2, warps_k=1, stages=3),
    Tile(channels=128, tokens=128, warps_c=4, warps_t=2, warps_k=1, stages=2),
)


def problems(sizes=SIZES, projections=PROJECTIONS) -> list[tuple[dict, tvm.tirx.PrimFunc]]:
    """What each kernel computes, and its definition."""
    found = []
    for (k, n), m, sparse in itertools.product(projections, sizes, (False, True)):
        spec = tensor_gemm.TensorGemm((m,), k, n, sparse)
        for tile in (*tensor_tile.TILES, *MORE_TILES):
            if tile.tokens >= 2 * max(m, 16) or tile.tokens * 16 < m or _too_big(tile, spec):
                continue
            problem = {"op": "tensor_gemm", "m": m, "k": k, "n": n, "sparse": sparse, "picked": ()}
            found.append((problem, with_tile(spec.prim_func(), tile)))
    for (k, n), m, picked in itertools.product(projections, sizes, PICKED):
        problem = {"op": "tensor_gemm", "m": m, "k": k, "n": n, "sparse": False, "picked": picked}
        found.append((problem, tensor_gemm.TensorGemm((m,), k, n, picked=picked).prim_func()))
    k, n = projections[-1]
    for m, pattern in itertools.product(sizes, PATTERNS):
        problem = {"op": "gemm", "m": m, "k": k, "n": n, "pattern": (pattern.n, pattern.m, pattern.block)}
        found.append((problem, packed_for(Gemm((m,), k, n, pattern), None).prim_func()))
    for op, definition in ROWS.items():
        for shape in ((12, 512, 512), (32, 32000)):
            found.append(({"op": op, "shape": shape}, definition(shape)))
    for (heads, m, n), normaliser, half in itertools.product(
        ATTENTION, ("softmax", "sparsemax"), (None, "float16")
    ):
        problem = {"op": "attention", "heads": heads, "m": m, "n": n, "d": 64, "normaliser": normaliser}
        found.append((problem | {"half": half}, attention(heads, m, n, normaliser, half=half).prim_func()))
    return found


def _too_big(tile: Tile, spec: tensor_gemm.TensorGemm) -> bool:
    least = min(arch.shared for arch in ARCHITECTURES.values())
    return tile.words(spec).total * 4 > least


def generate(some: list[tuple[dict, tvm.tirx.PrimFunc]], arch: str) -> tuple[Kernels, list[dict]]:
    """The kernels of all problems, and the plan: every problem with its launch."""
    named = {f"k{i}": func for i, (_, func) in enumerate(some)}
    kernels = build_kernels(tvm.IRModule(named), Gpu((arch,)))
    plan = []
    for name, (problem, func) in zip(named, some, strict=True):
        launches = [
            {
                "kernel": launch.kernel,
                "grid": launch.grid,
                "block": launch.block,
                "shared": launch.shared,
                "args": [(argument.kind, argument.where) for argument in launch.args],
            }
            for launch in kernels.launches[name]
        ]
        tile = str(func.attrs.get("sparsec.tile", "chosen"))
        between = any(kind == "scratch" for launch in launches for kind, _ in launch["args"])
        scratch = kernels.scratch_size if between else 0  # the most that any needs
        plan.append(problem | {"tile": tile, "launches": launches, "scratch": scratch})
    return kernels, plan


def write(folder: Path, arch: str) -> int:
    """Makes the folder; the number of kernels."""
    kernels, plan = generate(problems(), arch)
    binary = toolchain().fat_binary(kernels.source, (arch,), None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.fatbin").write_bytes(binary)
    (folder / "plan.json").write_text(json.dumps(plan))
    for package in PACKAGES:
        (folder / package).mkdir(exist_ok=True)
        (folder / package / "__init__.py").touch()
    for source, to in FILES.items():
        shutil.copyfile(ROOT / source, folder / to)
    for source, to in COPIES.items():
        (folder / to).mkdir(exist_ok=True)
        for path in (ROOT / source).glob("*.py"):
            shutil.copy(path, folder / to)
    return len(plan)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cuda.bundle", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", choices=tuple(ARCHITECTURES), default="sm_90")
    asked = parser.parse_args()
    print(f"{write(asked.folder, asked.arch)} kernels for {asked.arch} in {asked.folder}")
    bundle_networks.write(asked.folder, asked.arch)


if __name__ == "__main__":
    main()
