"""The emulator is right about what it runs, and finds what is wrong with a kernel."""

from pathlib import Path

import numpy as np
import pytest

from cuda_emulator import ORDERS, Emulated, EmulationError
from cuda_emulator.build import compiler

pytestmark = pytest.mark.skipif(not compiler(), reason="the emulator needs g++ (apt-get install g++)")

SOURCE = Path(__file__).with_name("planted.cu").read_text()
RNG = np.random.default_rng(0)
TILES = 2 * 256 * 4


@pytest.fixture(scope="module")
def plain():
    return Emulated(SOURCE)


@pytest.fixture(scope="module")
def checked():
    return Emulated(SOURCE, checked=True)


@pytest.fixture(params=[False, True], ids=["plain", "checked"])
def either(request, plain, checked):
    return checked if request.param else plain


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def nothing(*shape, dtype=np.float32):
    return np.full(shape, -77, dtype)


def results(emulated, kernel, grid, block, inputs, shape, **options):
    """The result of ``kernel`` in every order."""
    found = []
    for order in ORDERS:
        y = nothing(*shape)
        emulated.launch(kernel, grid, block, [*inputs, y], order=order, **options)
        found.append(y)
    return found


# ---- what it runs -------------------------------------------------------------------------------------


def test_sums_with_barriers_are_right_in_every_order(either):
    x = floats(3, 64)
    for y in results(either, "sum_right", (3,), (64,), [x], (3,)):
        np.testing.assert_allclose(y, x.astype(np.float64).sum(1), rtol=1e-5)


def test_syncwarp_orders_a_warp(either):
    x = floats(32)
    for y in results(either, "reverse_right", (1,), (32,), [x], (32,)):
        np.testing.assert_array_equal(y, x[::-1])


def test_a_pipeline_of_copies_is_right_in_every_order(either):
    x = floats(2, 64, 4)
    for y in results(either, "pipeline_right", (1,), (64,), [x], (2, 64, 4), shared_bytes=TILES):
        np.testing.assert_array_equal(y, x[:, np.arange(64) ^ 33])


@pytest.mark.parametrize("order", ORDERS)
def test_warp_functions(either, order):
    x = np.arange(64, dtype=np.int32) * 7
    y = nothing(6, 64, dtype=np.int32)
    either.launch("warp_functions", (1,), (64,), [x, y], order=order)
    lane = np.arange(64)
    np.testing.assert_array_equal(y[0], x[lane ^ 5])
    np.testing.assert_array_equal(y[1], x[np.where(lane % 16 >= 3, lane - 3, lane)])
    np.testing.assert_array_equal(y[2], x[np.where(lane % 16 + 3 < 16, lane + 3, lane)])
    votes = [sum(1 << i for i in range(32) if x[w * 32 + i] % 3 == 0) for w in range(2)]
    np.testing.assert_array_equal(y[3].view(np.uint32), np.repeat(votes, 32))
    active = lane % 32 < 12
    assert set(y[4][active]) == {0xFFF} and set(y[4][~active]) == {-77}
    np.testing.assert_array_equal(y[5][active], np.repeat(x[[11, 43]], 12))


def test_atomics(either):
    x = RNG.integers(-99, 99, (5, 64)).astype(np.int32)
    total, top, count = np.zeros(1, np.int32), np.full(1, -1000, np.int32), np.zeros(1, np.float32)
    either.launch("atomics", (5,), (64,), [x, total, count, top])
    assert (total[0], top[0], count[0]) == (x.sum(), x.max(), 160.0)


def test_ldmatrix_and_mma(either):
    a, b = floats(16, 16).astype(np.float16), floats(16, 8).astype(np.float16)
    for y in results(either, "product", (1,), (32,), [a, b], (16, 8)):
        np.testing.assert_allclose(y, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_wmma(either):
    a, b = floats(16, 16).astype(np.float16), floats(16, 16).astype(np.float16)
    for y in results(either, "product_wmma", (1,), (32,), [a, b], (16, 16)):
        np.testing.assert_allclose(y, a.astype(np.float64) @ b.astype(np.float64).T, rtol=1e-5, atol=1e-5)


def test_tf32_looks_at_ten_bits_of_mantissa(plain):
    a, b = floats(16, 8), floats(8, 8)
    short = [(v.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64) for v in (a, b)]
    y = results(plain, "product_tf32", (1,), (32,), [a, b], (16, 8))[0]
    np.testing.assert_allclose(y, short[0] @ short[1], rtol=1e-5, atol=1e-5)
    assert np.abs(y - a.astype(np.float64) @ b).max() > 1e-5


def test_floats_become_pairs_and_powers(plain):
    """The first of two is the upper half; powers too small for normal numbers are 0."""
    x = np.array([[1.0, -2.5], [2.0**-24, 65519.0], [np.inf, np.nan], [-127.0, 0.5]], np.float32)
    bits, powers = (np.zeros((4, k), d) for k, d in ((2, np.uint32), (2, np.float32)))
    plain.launch("conversions", (1,), (4,), [x, bits, powers])
    halves = x.astype(np.float16).view(np.uint16).astype(np.uint32)
    assert (bits[:, 0] == (halves[:, 1] << 16 | halves[:, 0])).all()
    assert bits[0, 1] == 0xC0203F80 and bits[1, 1] == 0x47803380
    np.testing.assert_allclose(powers[[0, 1, 3], [1, 0, 1]], [2.0**-2.5, 1, 2.0**0.5], rtol=2.0**-21)
    assert powers[3, 0] == 0 and np.isinf(powers[2, 0]) and np.isnan(powers[2, 1])


def test_bytes_are_permuted(plain):
    y = np.zeros(1, np.uint32)
    for selector, want in ((0x3210, 0x33221100), (0x7654, 0x77665544), (0x54320716, 0x00771166)):
        words = np.array([0x33221100, 0x77665544, selector], np.uint32)
        plain.launch("permute", (1,), (1,), [words, y])
        assert y[0] == want, hex(y[0])
    words[2] = 0x8210
    with pytest.raises(EmulationError, match="prmt: selector 8210 asks for a sign"):
        plain.launch("permute", (1,), (1,), [words, y])


def sparse_operands():
    """A 2:4 matrix [16, 32]; its values, and its metadata as the PTX ISA hands it out to lanes."""
    keep = np.array([RNG.choice(4, 2, replace=False) for _ in range(16 * 8)])
    index = np.sort(keep.reshape(16, 8, 2), axis=2)
    values = floats(16, 16).astype(np.float16)
    dense = np.zeros((16, 8, 4), np.float16)
    np.put_along_axis(dense, index, values.reshape(16, 8, 2), axis=2)
    words = np.zeros(32, np.uint32)
    for row in range(16):
        for column in range(16):
            lane = row % 8 * 4 + column // 8
            words[lane] |= index.reshape(16, 16)[row, column] << (row // 8 * 16 + column % 8 * 2)
    return dense.reshape(16, 32), values, words


def test_sparse_mma(plain):
    dense, values, words = sparse_operands()
    b = floats(8, 32).astype(np.float16)
    expected = dense.astype(np.float64) @ b.astype(np.float64).T
    y = results(plain, "product_sparse", (1,), (32,), [values, words, b], (16, 8))[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # The words of lanes 0 and 1 of a quad, exchanged: the wrong columns of b.
    exchanged = words.reshape(8, 4)[:, [1, 0, 2, 3]].copy()
    y = results(plain, "product_sparse", (1,), (32,), [values, exchanged, b], (16, 8))[0]
    assert np.abs(y - expected).max() > 0.1
    # Indices of a pair that descend.
    with pytest.raises(EmulationError, match=r"ordered_metadata: row 0, .* do not ascend"):
        results(plain, "product_sparse", (1,), (32,), [values, ~words, b], (16, 8))


# ---- what it finds ------------------------------------------------------------------------------------

# Which of two accesses comes second is a matter of the order.
UNORDERED = (
    "(read|written) without a barrier after the (read|write) of|read, but nobody has written it|is under way"
)
UNDER_WAY = "read while the cp.async of thread .* is under way"
WRONG = {
    "sum_without_first_barrier": (64, (64,), (1,), {}, UNORDERED),
    "sum_without_second_barrier": (64, (64,), (1,), {}, UNORDERED),
    "reverse_without_syncwarp": (32, (32,), (32,), {}, UNORDERED),
    "pipeline_without_wait": (64, (512,), (512,), {"shared_bytes": TILES}, UNDER_WAY),
    "pipeline_without_barrier": (64, (512,), (512,), {"shared_bytes": TILES}, UNORDERED),
    "pipeline_overwrites": (64, (512,), (512,), {"shared_bytes": TILES}, UNORDERED),
}


@pytest.mark.parametrize("kernel", WRONG)
def test_orders_disagree_about_a_missing_barrier(plain, kernel):
    threads, taken, given, options, _ = WRONG[kernel]
    found = results(plain, kernel, (1,), (threads,), [floats(*taken)], given, **options)
    assert any(not np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kernel", WRONG)
@pytest.mark.parametrize("order", ORDERS)
def test_a_checked_run_names_the_missing_barrier_in_any_order(checked, kernel, order):
    threads, taken, given, options, what = WRONG[kernel]
    with pytest.raises(EmulationError, match=rf"^{kernel}: block \(0, 0, 0\), thread \(.*({what})"):
        checked.launch(kernel, (1,), (threads,), [floats(*taken), nothing(*given)], order=order, **options)


@pytest.mark.parametrize(
    "kernel, at, options, what",
    [
        ("outside_array", 1, {}, r"index 32 outside of an array of type 'float \[32\]'"),
        ("outside_dynamic", 1, {"shared_bytes": 128}, "past its end"),
        ("outside_dynamic", -1, {"shared_bytes": 128}, "at 0x.*, which is in no buffer"),
        ("outside_buffer", 8, {}, "4 bytes at offset 128 of a buffer of 128"),
        ("outside_buffer", -1, {}, "4 bytes at (0x|offset)"),
        ("outside_local", 0, {}, r"index 4 outside of an array of type 'float \[4\]'"),
    ],
)
def test_an_access_outside(checked, kernel, at, options, what):
    with pytest.raises(EmulationError, match=what):
        checked.launch(kernel, (1,), (32,), [floats(32), floats(32), np.int32(at)], **options)


def test_an_access_inside_is_nobodys_business(checked):
    for kernel in ("outside_array", "outside_buffer", "outside_dynamic"):
        x, y = floats(32), nothing(32)
        checked.launch(kernel, (1,), (32,), [x, y, np.int32(0)], shared_bytes=128)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "kernel, threads, what",
    [
        ("never_written", 32, "shared byte .*: read, but nobody has written it"),
        ("misaligned", 8, "16 bytes at 0x.*: a misaligned address"),
        ("different_instructions", 32, "meet at different places: __shfl_down_sync .* __shfl_sync"),
        ("hanging", 64, "block .* hangs: of 64 threads .* 63 wait at __syncthreads, others at __shfl_sync"),
    ],
)
def test_other_mistakes(checked, kernel, threads, what):
    with pytest.raises(EmulationError, match=what):
        checked.launch(kernel, (1,), (threads,), [floats(64), nothing(64)])


def test_launches_that_a_driver_would_refuse(plain):
    x, y = floats(3, 64), nothing(3)
    with pytest.raises(EmulationError, match="sum_right: not launched: more threads than the launch bound"):
        plain.launch("sum_right", (1,), (65,), [x, y])
    with pytest.raises(EmulationError, match="not launched: a grid and a block must not be empty"):
        plain.launch("sum_right", (0,), (64,), [x, y])
    with pytest.raises(EmulationError, match="more dynamic shared memory than"):
        plain.launch("sum_right", (1,), (64,), [x, y], shared_bytes=228 * 1024)
    with pytest.raises(EmulationError, match="no such kernel"):
        plain.launch("sum", (1,), (64,), [x, y])
    with pytest.raises(EmulationError, match="required 2 arguments, found 1"):
        plain.launch("sum_right", (1,), (64,), [x])


def test_one_name_of_shared_memory_has_one_type():
    kernel = 'extern "C" __global__ void {}() {{ extern __shared__ {} line[]; }}'
    with pytest.raises(ValueError, match="line: declared as float and as half, which nvcc does not take"):
        Emulated(kernel.format("a", "float") + kernel.format("b", "half"))


def test_an_instruction_without_a_meaning_is_named():
    kernel = 'extern "C" __global__ void k(int* x) {{ asm volatile("{}" : : "r"(x[0])); }}'
    with pytest.raises(ValueError, match="cannot compile this source: .*ptx_bar_arrive"):
        Emulated(kernel.format("bar.arrive 1, %0;"))
    with pytest.raises(ValueError, match="required one PTX instruction"):
        Emulated(kernel.format("nop %0; nop %0;"))
