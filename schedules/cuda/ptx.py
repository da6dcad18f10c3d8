"""Instructions and built-ins of a GPU as TIR: what a kernel says beside loops, loads and stores.

Shared memory is one buffer of words (``shared``), which the instructions address; local buffers are
registers, as all indices into them are constants once the loops are unrolled.  (Names and operands as in
the PTX ISA.)
"""

import math
from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.script import tirx as T

from sparsec.schedules import tir
from sparsec.schedules.cuda.fragments import Number
from sparsec.schedules.cuda.target import WARP


def grid(blocks: tuple[int, ...], threads: int, body: Callable[..., tir.Stmt]) -> tir.Stmt:
    """``body(*block, thread)`` as one kernel: ``blocks`` in x, y, z, and a line of threads."""
    names = [*(f"blockIdx.{axis}" for axis, _ in zip("xyz", blocks, strict=False)), "threadIdx.x"]

    def bound(extents: list[int], indices: list) -> tir.Stmt:
        if len(indices) == len(names):
            return body(*indices)
        name, extent = names[len(indices)], extents[len(indices)]
        index = tir.var(name.replace(".", "_"))
        axis = tirx.IterVar(None, index, tirx.IterVar.ThreadIndex, name)
        inner = bound(extents, [*indices, index])
        return tirx.For(index, tir.i64(0), tir.i64(extent), tirx.ForKind.THREAD_BINDING, inner, axis)

    return bound([*blocks, threads], [])


def narrow(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with indices of 32 bits: wider ones cost two registers and several instructions each."""
    for param in func.params:
        if math.prod(tir.shape_of(param)) >= 1 << 31:
            return func
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    narrowed = tirx.transform.ForceNarrowIndexToInt32()(module)["main"]
    return tirx.PrimFunc(narrowed.params, narrowed.body, narrowed.ret_type, func.attrs)


def registers(name: str, count: int, dtype: str) -> tir.Buffer:
    return tirx.decl_buffer([tir.i64(count)], dtype, name=name, scope="local")


def shared(words: int, dtype: str) -> tir.Buffer:
    """Dynamic shared memory, the one buffer of a kernel.

    The kernels of a source declare it all over again, which CUDA allows for one type under one name.
    """
    return tirx.decl_buffer([tir.i64(words)], dtype, name=f"shared_{dtype}", scope="shared.dyn")


def view(buffer: tir.Buffer, dtype: str) -> tuple[tir.Buffer, tir.Stmt]:
    """The memory of ``buffer`` as words of another type, and the statement that declares it."""
    other = tirx.decl_buffer(tir.shape_of(buffer), dtype, f"{buffer.name}_{dtype}", scope=buffer.scope())
    return other, tirx.DeclBuffer(other, data=buffer.data)


def zero(buffer: tir.Buffer) -> tir.Stmt:
    """Zeros in registers of float32."""
    return unrolled("i", tir.shape_of(buffer)[0], lambda i: tirx.BufferStore(buffer, tir.f32(0.0), [i]))


def unrolled(name: str, extent: int, body: Callable[[tir.Expr], tir.Stmt]) -> tir.Stmt:
    return tir.loop(name, extent, body, "UNROLLED") if extent > 1 else body(tir.i64(0))


def unrolled_nest(extents: tuple[int, ...], body: Callable[..., tir.Stmt], *indices) -> tir.Stmt:
    """``body(i, j, ...)`` for all indices below ``extents``, the last one fastest."""
    if not extents:
        return body(*indices)
    return unrolled("i", extents[0], lambda i: unrolled_nest(extents[1:], body, *indices, i))


def when(condition, stmt: tir.Stmt) -> tir.Stmt:
    """``stmt`` where ``condition`` holds; None stands for always."""
    return stmt if condition is None else tirx.IfThenElse(condition, stmt, None)


def barrier() -> tir.Stmt:
    """All threads of the block, and what they have written to shared memory."""
    return tirx.Evaluate(T.tvm_storage_sync("shared"))


def shuffle_xor(value: tir.Expr, by: int) -> tir.Expr:
    """What the lane has whose number differs in the bits ``by``; all lanes of the warp take part."""
    return T.tvm_warp_shuffle_xor(tirx.const(0xFFFFFFFF, "uint32"), value, by, WARP, WARP)


def put_shared(to: tir.Buffer, word, value: tir.Expr) -> tir.Stmt:
    """``to[word] = value``, out of sight of TVM, which would have a barrier where a ``while`` allows none."""
    return tirx.Evaluate(T.ptx["st.shared.f32"](tirx.address_of(tir.load(to, word)), value))


def get_shared(to: tir.Buffer, source: tir.Buffer, word) -> tir.Stmt:
    """``to[0] = source[word]``; see ``put_shared``."""
    address = tirx.address_of(tir.load(source, word))
    return tirx.Evaluate(T.ptx["ld.shared.f32"](tir.load(to, tir.i64(0)), address))


def copy_async(to: tir.Buffer, word, source: tir.Buffer, index: list, valid=None, size: int = 16) -> tir.Stmt:
    """16, 8 or 4 bytes from global memory to ``to[word]``; zeros where ``valid`` does not hold."""
    operands = [tirx.address_of(tir.load(to, word)), tirx.address_of(tir.load(source, *index)), size]
    if valid is not None:
        operands.append(tirx.Select(valid, tirx.const(size, "uint32"), tirx.const(0, "uint32")))
    # Only copies of 16 bytes can pass the first-level cache by.
    kind = "cg" if size == 16 else "ca"
    return tirx.Evaluate(T.ptx[f"cp.async.{kind}.shared.global"](*operands))


def commit() -> tir.Stmt:
    return tirx.Evaluate(T.ptx["cp.async.commit_group"]())


def wait(groups_left: int) -> tir.Stmt:
    return tirx.Evaluate(T.ptx["cp.async.wait_group"](groups_left))


def pipeline(rounds, stages: int, fetch: Callable, work: Callable) -> list[tir.Stmt]:
    """``work(step, stage)`` for every round; ``fetch`` of the same copies ``stages - 1`` rounds before.

    ``rounds`` is a number, or an expression.
    """
    ahead = stages - 1

    def group(copies: tir.Stmt) -> tir.Stmt:
        return tir.seq([copies, commit()])

    def one(step) -> tir.Stmt:
        later = step + ahead
        return tir.seq(
            [
                wait(ahead - 1),
                # The stage has come for everybody, and nobody reads the one that is fetched into any more.
                barrier(),
                # An empty group is a group: one for each round, so that counting them tells which have come.
                group(when(later < rounds, fetch(later, later % stages))),
                work(step, step % stages),
            ]
        )

    def before(step: int) -> tir.Stmt:
        if isinstance(rounds, int):
            return group(fetch(tir.i64(step), tir.i64(step))) if step < rounds else commit()
        return group(when(step < rounds, fetch(tir.i64(step), tir.i64(step))))

    return [*map(before, range(ahead)), tir.loop("step", rounds, one)]


def load_matrices(to: tir.Buffer, first, source: tir.Buffer, word, transposed: bool = False) -> tir.Stmt:
    """Four 8 x 8 matrices of 16-bit elements to ``to[first]`` and on; ``word`` is the row of this lane."""
    lanes = [tir.load(to, first + tir.i64(i)) for i in range(4)]
    address = tirx.address_of(tir.load(source, word))
    name = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16"
    return tirx.Evaluate(T.ptx[name](*lanes, address))


def permute_bytes(to: tir.Buffer, at, a: tir.Buffer, a_at, b: tir.Buffer, b_at, selector) -> tir.Stmt:
    """``to[at]``: four bytes of two words as the selector says; those of ``a`` are 0 to 3."""
    operands = [tir.load(to, at), tir.load(a, a_at), tir.load(b, b_at), selector]
    return tirx.Evaluate(T.ptx["prmt.b32"](*operands))


def round_tf32(registers: tir.Buffer, at) -> tir.Stmt:
    """Rounds a float32 that lies in a register of 32 bits to what tensor cores look at."""
    value = tirx.reinterpret("float32", tir.load(registers, at))
    return tirx.Evaluate(T.ptx["cvt.rna.tf32.f32"](tir.load(registers, at), value))


def multiply(
    number: Number,
    sums: tir.Buffer,
    at,
    a: tir.Buffer,
    a_at,
    b: tir.Buffer,
    b_at,
    metadata=None,
    selector: int = 0,
) -> tir.Stmt:
    """``sums += A B`` on a tensor core: 16 x 8 sums from its ``columns``, twice as many with ``metadata``."""
    d = [tir.load(sums, at + tir.i64(i)) for i in range(4)]
    left = [tir.load(a, a_at + tir.i64(i)) for i in range(4)]
    right = [tir.load(b, b_at + tir.i64(i)) for i in range(2 if metadata is None else 4)]
    kind, columns = number.ptx, number.columns
    if metadata is None:
        name = f"mma.sync.aligned.m16n8k{columns}.row.col.f32.{kind}.{kind}.f32"
        return tirx.Evaluate(T.ptx[name](*d, *left, *right, *d))
    name = f"mma.sp::ordered_metadata.sync.aligned.m16n8k{columns * 2}.row.col.f32.{kind}.{kind}.f32"
    return tirx.Evaluate(T.ptx[name](*d, *left, *right, *d, metadata, selector))
