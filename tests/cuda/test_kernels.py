"""From functions to CUDA C and launches; what has no kernel is named."""

import pytest
from tvm import te, tirx

from sparsec.compiler.cuda.kernels import Argument, build_kernels
from sparsec.compiler.errors import CompileError
from sparsec.schedules import tir
from sparsec.schedules.cuda import Gpu
from sparsec.schedules.cuda.faults import to_faults
from sparsec.schedules.lookup import checked_index

GPU = Gpu(("sm_80",))


def module(**functions):
    import tvm

    return tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})


def doubled(size: int) -> tirx.PrimFunc:
    x = te.placeholder((size,), "float32", name="x")
    return te.create_prim_func([x, te.compute((size,), lambda i: x[i] * tir.f32(2.0), name="y")])


def test_a_launch_has_the_kernel_s_own_order_of_arguments():
    a, b = (te.placeholder((300,), "float32", name=n) for n in "ab")
    y = te.compute((300,), lambda i: b[i] - a[i], name="y")
    (one,) = build_kernels(module(f=te.create_prim_func([a, b, y])), GPU).launches["f"]
    order = [argument.where for argument in one.args]
    assert sorted(order) == [0, 1, 2] and {argument.kind for argument in one.args} == {"param"}
    assert one.grid[0] * one.block[0] >= 300 and one.shared == 0


def test_what_lies_between_kernels_is_scratch_memory():
    x = te.placeholder((7, 5), "float32", name="x")
    k, j = (te.reduce_axis((0, 5), name=n) for n in "kj")
    sums = te.compute((7,), lambda i: te.sum(x[i, k], axis=[k]), name="sums")
    y = te.compute((7,), lambda i: te.max(x[i, j] - sums[i], axis=[j]), name="y")
    built = build_kernels(module(f=te.create_prim_func([x, y])), GPU)
    used = {a for each in built.launches["f"] for a in each.args}
    assert Argument("scratch", 0) in used and built.scratch_size == 64  # 7 floats, aligned


def test_nothing_is_launched_for_no_elements():
    z = tirx.decl_buffer([tir.i64(1)], "float32", name="z")
    body = tir.loop("i", 0, lambda i: tirx.BufferStore(z, tir.f32(1.0), [i]), independent=True)
    func = tirx.PrimFunc([z], body).with_attrs({tir.NOALIAS: True, "s_tir": True})
    assert build_kernels(module(f=func), GPU).launches["f"] == ()


def test_an_assertion_becomes_a_fault():
    built = build_kernels(module(f=checked_index((9,), "int64", (4,), "Gather 'g'")), GPU)
    assert built.faults == ("Gather 'g': an index is outside [-4, 4)",)
    (one,) = built.launches["f"]
    assert Argument("fault") in one.args and one.block[0] == 9


def test_faults_are_numbered_by_their_text():
    texts: list[str] = []
    for who in ("a", "b", "a"):
        to_faults(checked_index((2,), "int32", (3, 4), who), texts)
    expected = [f"{who}: an index is outside [-{size}, {size})" for who in "ab" for size in (3, 4)]
    assert texts == expected


def test_a_function_without_a_kernel_is_named():
    z = tirx.decl_buffer([tir.i64(4)], "float32", name="z")
    store = tirx.BufferStore(z, tir.f32(1.0), [tir.i64(0)])
    call = tirx.Evaluate(tirx.call_packed("a.function.of.the.host", tir.i32(1)))
    bad = tirx.PrimFunc([z], tir.seq([store, call])).with_attr(tir.NOALIAS, True)
    with pytest.raises(CompileError, match=r"^'bad' has no kernel for GPUs: \S") as caught:
        build_kernels(module(good=doubled(4), bad=bad), GPU)
    assert "\n" not in str(caught.value)
