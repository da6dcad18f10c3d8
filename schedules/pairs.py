"""Products of 16-bit integers, two in a lane of 32 bits, exact on every CPU.

``madd(sum, x, w) = sum + x0 * w0 + x1 * w1``, of the int16 halves of ``x`` and ``w``.  x86 has an instruction
for the two products (``vpmaddwd``).  ``pick(address, choice)`` puts four of the bytes at an address into
every lane, those that the lane's bytes of ``choice`` name: one shuffle of x86, one lookup of aarch64.
"""

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import tir
from sparsec.schedules.target import Cpu

_MADD, _PICK = "sparsec_madd_", "sparsec_pick_"
#: Lanes -> x86's instructions.
_SHUFFLES = {4: "x86.ssse3.pshuf.b.128", 8: "x86.avx2.pshuf.b", 16: "x86.avx512.pshuf.b.512"}
_PRODUCTS = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}


def madd(total, x, w):
    lanes = tir.lanes_of(total)
    return tirx.call_extern(f"int32x{lanes}", f"{_MADD}{lanes}", total, x, w)


def pick(address, choice, window: int = 16):
    """``window``: how many bytes there are to choose from, 8 or 16."""
    lanes = tir.lanes_of(choice)
    return tirx.call_extern(f"int32x{lanes}", f"{_PICK}{window}_{lanes}", address, choice)


def imported(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc:
    """``func`` with the functions of this file that it calls, as ``cpu`` has them."""
    called = set()

    def visit(call):
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        if name.endswith("call_extern") and call.args[0].value.startswith((_MADD, _PICK)):
            called.add(call.args[0].value)

    tvm_ffi.structural_walk(func.body, (ir.Call, visit))
    if not called:
        return func
    x86 = cpu.triple.startswith("x86_64")
    madd = _X86 if x86 else _PLAIN
    text = ""
    for name in sorted(called):
        n, window = int(name.rpartition("_")[2]), 8 if name.startswith(f"{_PICK}8_") else 16
        text += (madd if name.startswith(_MADD) else _SHUFFLE).format(
            called=name,
            window=f"<{window} x i8>",
            words=f"<{n} x i32>",
            halves=f"<{2 * n} x i16>",
            wide=f"<{2 * n} x i32>",
            bytes=f"<{4 * n} x i8>",
            madd=_PRODUCTS.get(n),
            shuffle=_SHUFFLES.get(n) if x86 else "aarch64.neon.tbl1.v16i8",
            copies=f"<{4 * n} x i32> <" + ", ".join(f"i32 {i % window}" for i in range(4 * n)) + ">",
            even=", ".join(f"i32 {lane}" for lane in range(0, 2 * n, 2)),
            odd=", ".join(f"i32 {lane}" for lane in range(1, 2 * n, 2)),
        )
    body = tirx.AttrStmt(tir.i32(0), "pragma_import_llvm", ir.StringImm(text), func.body)
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


_X86 = """
declare {words} @llvm.x86.{madd}({halves}, {halves})
define weak_odr {words} @{called}({words} %sum, {words} %x, {words} %w) alwaysinline {{
  %a = bitcast {words} %x to {halves}
  %b = bitcast {words} %w to {halves}
  %both = call {words} @llvm.x86.{madd}({halves} %a, {halves} %b)
  %all = add {words} %sum, %both
  ret {words} %all
}}
"""

_PLAIN = """
define weak_odr {words} @{called}({words} %sum, {words} %x, {words} %w) alwaysinline {{
  %a = bitcast {words} %x to {halves}
  %b = bitcast {words} %w to {halves}
  %aw = sext {halves} %a to {wide}
  %bw = sext {halves} %b to {wide}
  %products = mul {wide} %aw, %bw
  %even = shufflevector {wide} %products, {wide} poison, {words} <{even}>
  %odd = shufflevector {wide} %products, {wide} poison, {words} <{odd}>
  %both = add {words} %even, %odd
  %all = add {words} %sum, %both
  ret {words} %all
}}
"""

_SHUFFLE = """
declare {bytes} @llvm.{shuffle}({bytes}, {bytes})
define weak_odr {words} @{called}(ptr %from, {words} %choice) alwaysinline {{
  %window = load {window}, ptr %from, align 1
  %every = shufflevector {window} %window, {window} poison, {copies}
  %which = bitcast {words} %choice to {bytes}
  %picked = call {bytes} @llvm.{shuffle}({bytes} %every, {bytes} %which)
  %all = bitcast {bytes} %picked to {words}
  ret {words} %all
}}
"""
