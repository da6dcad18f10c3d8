"""Products of 16-bit integers, two in a lane of 32 bits, exact on every CPU.

``madd(sum, x, w) = sum + x0 * w0 + x1 * w1``, of the int16 halves of ``x`` and ``w``.  x86 has an instruction
for the two products (``vpmaddwd``).
"""

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import tir
from sparsec.schedules.target import Cpu

_NAME = "sparsec_madd_"
#: Lanes -> x86's instruction.
_MADD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}


def madd(total, x, w):
    lanes = tir.lanes_of(total)
    return tirx.call_extern(f"int32x{lanes}", f"{_NAME}{lanes}", total, x, w)


def imported(func: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc:
    """``func`` with the forms of ``madd`` that it calls, as ``cpu`` has them."""
    called = set()

    def visit(call):
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        if name.endswith("call_extern") and call.args[0].value.startswith(_NAME):
            called.add(int(call.args[0].value.removeprefix(_NAME)))

    tvm_ffi.structural_walk(func.body, (ir.Call, visit))
    if not called:
        return func
    form = _X86 if cpu.triple.startswith("x86_64") else _PLAIN
    text = "".join(
        form.format(
            called=f"{_NAME}{n}",
            words=f"<{n} x i32>",
            halves=f"<{2 * n} x i16>",
            wide=f"<{2 * n} x i32>",
            madd=_MADD.get(n),
            even=", ".join(f"i32 {lane}" for lane in range(0, 2 * n, 2)),
            odd=", ".join(f"i32 {lane}" for lane in range(1, 2 * n, 2)),
        )
        for n in sorted(called)
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
