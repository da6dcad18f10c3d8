"""The kernels that are looked at: every tile of every kind at a size that it is for."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from sparsec.schedules import entmax, layer_norm, softmax, sparsemax
from sparsec.schedules.attention import Attention, Strided
from sparsec.schedules.contraction import Gemm, conv, packed_for
from sparsec.schedules.cuda import contraction_tile, tensor_gemm, tensor_tile
from sparsec.schedules.cuda.tile import with_tile
from sparsec.schedules.cuda.vector_tile import MOST_ROWS
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.top_k import top_k

#: K and N of the products: those of a transformer's second projection.
K, N = 4096, 4096
#: The largest number of rows of a tile for any.
MOST = 4096

COPIES, PRODUCTS, SPARSE_PRODUCTS, MATRICES = "LDGSTS", "HMMA.16816", "HMMA.SP.16832", "LDSM"
TF32_PRODUCTS, PERMUTES = "HMMA.1688", "PRMT"
#: Operators on whole rows, entmax with the alpha that is asked for most.
ROWS = {
    "softmax": softmax.softmax,
    "sparsemax": sparsemax.sparsemax,
    "entmax": functools.partial(entmax.entmax, alpha=1.5),
}
#: A layer of ResNet-50.
IMAGE = (1, 28, 28, 128, 128, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1))


@dataclass(frozen=True)
class Case:
    """``definition`` makes the unscheduled function; ``instructions``: what the machine code must contain."""

    name: str
    definition: Callable[[], tirx.PrimFunc]
    instructions: tuple[str, ...]


def cases() -> list[Case]:
    return [*_tensor(), *_contractions(), *_vectors(), *_attention(), *_rows()]


def _tensor():
    # The formats differ in one word of one instruction, so one tile will do for those after the first.
    tiles = (("float16", "f16", tensor_tile.TILES), ("bfloat16", "bf16", tensor_tile.TILES[:1]))
    for dtype, short, some in tiles:
        for tile, sparse in itertools.product(some, (False, True)):
            spec = tensor_gemm.TensorGemm((MOST,), K, N, sparse, dtype)
            name = f"{short}_gemm_{'2of4' if sparse else 'dense'}__{tile.channels}x{tile.tokens}"
            yield Case(name, functools.partial(_cut, spec, tile), (_products(sparse), MATRICES, COPIES))
    for picked, tile in itertools.product(
        ((1, 4, 2), (4, 16, 1)), (tensor_tile.TILES[0], tensor_tile.TILES[-3], tensor_tile.TILES[-1])
    ):
        spec = tensor_gemm.TensorGemm((MOST,), K, N, picked=picked)
        n, m, share = picked
        name = f"f16_gemm_{n}of{m}x{share * 16}__{tile.channels}x{tile.tokens}"
        yield Case(name, functools.partial(_cut, spec, tile), (PRODUCTS, PERMUTES, COPIES))
    spec = tensor_gemm.TensorGemm((MOST,), K, N, dtype="tf32")
    yield Case("tf32_gemm_dense__128x128", spec.prim_func, (TF32_PRODUCTS, MATRICES, COPIES))
    for sparse in (False, True):
        spec = tensor_gemm.TensorConv(*IMAGE, sparse)
        name = f"f16_conv_3x3_{'2of4' if sparse else 'dense'}"
        yield Case(name, spec.prim_func, (_products(sparse), MATRICES, COPIES))


def _products(sparse: bool) -> str:
    return SPARSE_PRODUCTS if sparse else PRODUCTS


def _cut(spec, tile) -> tirx.PrimFunc:
    return with_tile(spec.prim_func(), tile)


def _contractions():
    patterns = (DENSE, Pattern(2, 4, 32), Pattern(1, 8, 32), Pattern(2, 4, 4), Pattern(1, 8))
    for (most, tile), pattern in itertools.product(contraction_tile.TILES, patterns):
        if most <= MOST_ROWS:
            continue
        spec = packed_for(Gemm((min(most, MOST),), K, N, pattern), None)
        name = f"f32_gemm_{_kind(pattern)}__{tile.channels}x{tile.rows}"
        yield Case(name, spec.prim_func, ("FFMA", COPIES))
    yield Case("f32_conv_3x3", conv(*IMAGE).prim_func, ("FFMA", COPIES))
    for precision, name, loads in (("float32", "f32", "LDG.E.128"), ("float16 inputs", "f16", "LDG.E.64")):
        spec = conv(1, 56, 56, 144, 144, 3, 3, pads=(1, 1, 1, 1), groups=144, precision=precision)
        yield Case(f"{name}_depthwise_3x3", spec.prim_func, ("FFMA", loads, "STG.E.128"))


def _kind(pattern: Pattern) -> str:
    if pattern.dense:
        return "dense"
    return f"{pattern.n}of{pattern.m}" + (f"x{pattern.block}" if pattern.block < 16 else "")


def _vectors():
    for rows, pattern in itertools.product(
        (1, 4, 16), (DENSE, Pattern(2, 4, 32), Pattern(2, 4), Pattern(1, 5))
    ):
        spec = Gemm((rows,), K, N, pattern)
        if not spec.strips:
            yield Case(f"f32_vector_{_kind(pattern)}__{rows}", spec.prim_func, ("FFMA", COPIES, "LDG.E.128"))


def attention(
    heads: int, m: int, n: int, normaliser: str, size: int = 64, half: str | None = None
) -> Attention:
    """``m`` queries on ``n`` keys, of heads that lie one after another, of ``half`` if not of float32."""

    def rows(count: int) -> Strided:
        return Strided(heads * count * size, 0, (count * size, size, 1))

    score = ("Mul", "S", size**-0.5)
    spec = Attention((heads,), m, n, size, size, rows(m), rows(n), rows(n), normaliser, score)
    return spec.narrowed(half) if half else spec


def _attention():
    across = ("FFMA", COPIES, "SHFL")
    for m, n, normaliser, instructions in (
        (512, 512, "softmax", across),
        (1, 512, "softmax", across),
        (1, 4096, "softmax", across),
        (512, 512, "sparsemax", across),
        (512, 2048, "sparsemax", across),
        (1, 4096, "sparsemax", across[:2]),  # its rows are another kernel's
        (512, 8192, "sparsemax", across),
        (512, 512, "entmax", across),
    ):
        name = f"f32_attention_{normaliser}__{m}x{n}"
        yield Case(name, attention(12, m, n, normaliser).prim_func, instructions)
    yield Case(
        "f32_attention_softmax__128_values",
        attention(12, 512, 512, "softmax", 128).prim_func,
        ("FFMA", COPIES),
    )
    for m, n, normaliser, size in (
        (2048, 2048, "softmax", 64),
        (512, 512, "softmax", 64),
        (1, 512, "softmax", 64),
        (512, 512, "softmax", 128),
        (512, 512, "sparsemax", 64),
        (512, 2048, "sparsemax", 64),
    ):
        name = f"f16_attention_{normaliser}__{m}x{n}" + (f"_{size}_values" if size != 64 else "")
        spec = attention(12, m, n, normaliser, size, "float16")
        yield Case(name, spec.prim_func, (PRODUCTS, MATRICES, COPIES, "SHFL"))
    spec = attention(12, 512, 512, "softmax", half="bfloat16")
    yield Case("bf16_attention_softmax__512x512", spec.prim_func, (PRODUCTS, MATRICES, COPIES))


def _rows():
    for shape in ((12 * 512, 512), (1024, 4096), (32, 32000), (32, 50257)):
        for name, definition in ROWS.items():
            yield Case(f"f32_{name}__{shape[-1]}", functools.partial(definition, shape), ("SHFL",))
    yield Case("f32_entmax_any__512", functools.partial(entmax.entmax, (6144, 512), 1.3), ("SHFL", "MUFU"))
    norm = functools.partial(layer_norm.layer_norm, (4096, 1024), -1, 1e-5, True)
    yield Case("f32_layer_norm__1024", norm, ("SHFL",))
    yield Case("f32_top_k__32000", functools.partial(top_k, (32, 32000), "float32", -1, 50), ("SHFL",))
