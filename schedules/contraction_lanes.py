"""The *lanes* form of N:M weights: every vector lane picks its own activation out of a window by a permute.

A window of 16 neighbouring activations is loaded, and one permute puts the activation that each output
channel kept into that channel's lane.  So a product costs a permute and a multiply-add, on row-major
activations."""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.layout import BITS, PER_WORD, WINDOW, WORDS, Pattern

PERMUTE_8 = "llvm.x86.avx2.permps"
PERMUTE_16 = "llvm.x86.avx512.permvar.sf.512"


def choices(words: tir.Buffer, index: list, v: int, lanes: int) -> tir.Expr:
    """int32 vector whose low 4 bits say what the lanes from ``v`` of a panel choose; upper bits are noise."""
    if lanes > PER_WORD:
        both = tir.vector_load(words, *index, tir.i64(0), lanes=WORDS)
        word = tir.shuffle(both, [lane // PER_WORD for lane in range(lanes)])
        within_word = tir.broadcast(tir.i32(PER_WORD * BITS - 1), lanes)
        shift = tirx.bitwise_and(tirx.Ramp(tir.i32(0), tir.i32(BITS), lanes), within_word)
    else:
        word = tir.broadcast(tir.load(words, *index, tir.i64(v // PER_WORD)), lanes)
        shift = tirx.Ramp(tir.i32(v % PER_WORD * BITS), tir.i32(BITS), lanes)
    return word >> shift


def chosen_activations(
    pattern: Pattern, x: tir.Buffer, index: list, slot: tir.Expr, choice: tir.Expr, lanes: int
) -> tir.Expr:
    """The float32 vector ``x[*index[:-1], index[-1] + choice]``, ``index`` being the first of the window."""
    *outer, start = index
    if lanes == 16:
        return tir.llvm_intrinsic(PERMUTE_16, "float32x16", tir.vector_load(x, *index, lanes=16), choice)
    if lanes == 8:
        if pattern.m <= 8:
            # The slot says which half of the window it reads.
            half = tirx.floordiv(tirx.floormod(slot, pattern.window_slots), pattern.window_slots // 2) * 8
            return tir.llvm_intrinsic(
                PERMUTE_8, "float32x8", tir.vector_load(x, *outer, start + half, lanes=8), choice
            )
        low, high = (
            tir.llvm_intrinsic(
                PERMUTE_8, "float32x8", tir.vector_load(x, *outer, start + half, lanes=8), choice
            )
            for half in (0, 8)
        )
        eight = tir.broadcast(tir.i32(8), lanes)
        return tirx.Select(tirx.EQ(tirx.bitwise_and(choice, eight), eight), high, low)
    offset = tirx.bitwise_and(choice, tir.broadcast(tir.i32(WINDOW - 1), lanes)).astype(f"int64x{lanes}")
    return tirx.BufferLoad(x, [*outer, tir.broadcast(start, lanes) + offset])
