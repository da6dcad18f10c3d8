"""The *lanes* form of N:M weights: every vector lane picks its own activation out of a window by a permute.

A window of 4, 8 or 16 neighbouring activations is loaded once; one permute puts the activation that each output
channel kept into that channel's lane.  So a product costs a permute and a multiply-add, on row-major activations.
"""

from tvm import tirx

from sparsec.schedules import tir
from sparsec.schedules.layout import PANEL, Pattern

#: (lanes, window) of the permutes that exist: LLVM intrinsic, how it takes (window, choice).
PERMUTES = {
    (8, 4): "llvm.x86.avx.vpermilvar.ps.256",
    (8, 8): "llvm.x86.avx2.permps",
    (16, 4): "llvm.x86.avx512.vpermilvar.ps.512",
    (16, 8): "llvm.x86.avx512.permvar.sf.512",
    (16, 16): "llvm.x86.avx512.permvar.sf.512",
}


def choices(pattern: Pattern, words: tir.Buffer, index: list, v: int, lanes: int) -> tir.Expr:
    """int32 vector whose low bits say what the lanes from channel ``v`` of a panel choose; upper bits are noise."""
    per_word = PANEL // pattern.words
    if lanes > per_word:
        both = tir.vector_load(words, *index, tir.i64(0), lanes=pattern.words)
        word = tir.shuffle(both, [lane // per_word for lane in range(lanes)])
        shift = tirx.bitwise_and(
            tirx.Ramp(tir.i32(0), tir.i32(pattern.bits), lanes), tir.broadcast(tir.i32(31), lanes)
        )
    else:
        word = tir.broadcast(tir.load(words, *index, tir.i64(v // per_word)), lanes)
        shift = tirx.Ramp(tir.i32(v % per_word * pattern.bits), tir.i32(pattern.bits), lanes)
    return word >> shift


def chosen_activations(
    pattern: Pattern, x: tir.Buffer, index: list, choice: tir.Expr, lanes: int
) -> tir.Expr:
    """The float32 vector ``x[*index[:-1], index[-1] + choice]``, ``index`` being the first of the window."""
    window = pattern.window
    if (lanes, window) in PERMUTES:
        values = tir.vector_load(x, *index, lanes=window)
        if lanes > window:
            values = tir.shuffle(values, [lane % window for lane in range(lanes)])
        return tir.llvm_intrinsic(PERMUTES[lanes, window], f"float32x{lanes}", values, choice)
    if (lanes, window) == (8, 16):
        low, high = (
            tir.llvm_intrinsic(
                PERMUTES[8, 8],
                "float32x8",
                tir.vector_load(x, *index[:-1], index[-1] + half, lanes=8),
                choice,
            )
            for half in (0, 8)
        )
        eight = tir.broadcast(tir.i32(8), lanes)
        return tirx.Select(tirx.EQ(tirx.bitwise_and(choice, eight), eight), high, low)
    offset = tirx.bitwise_and(choice, tir.broadcast(tir.i32(window - 1), lanes)).astype(f"int64x{lanes}")
    return tirx.BufferLoad(x, [*index[:-1], tir.broadcast(index[-1], lanes) + offset])
