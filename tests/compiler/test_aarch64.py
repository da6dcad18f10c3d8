"""Products of int8 and bfloat16 on the levels of aarch64: kernels and artifacts, under QEMU."""

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import tvm
from integer_sums import convolved, operands
from quantised_models import Quantised

from benchmarks import loops
from sparsec.compiler import emulator
from sparsec.compiler.objects import build_library, object_file
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.plan import ALIGN, Plan, Port, Step, TensorRef
from sparsec.compiler.request import CompileRequest, cpu_levels
from sparsec.runtime import build, cpu
from sparsec.schedules.contraction import Gemm, conv
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import LEVELS
from sparsec.schedules.weight_quant import QuantGemm

pytestmark = pytest.mark.qemu("aarch64")


def run(kernels: dict, level: str, folder) -> dict[str, np.ndarray]:
    """What ``kernels``, by name ``(spec, inputs, weights, type of Y)``, compute for ``level``."""
    functions, steps, weights, inputs, outputs, feeds = {}, [], bytearray(), [], [], {}
    for index, (name, (spec, given, arrays, dtype)) in enumerate(kernels.items()):
        symbol, args = f"kernel{index}", []
        for x in given:
            args.append(TensorRef("input", len(inputs), x.shape, str(x.dtype)))
            inputs.append(Port(f"x{len(inputs)}", str(x.dtype), x.shape, x.shape))
            feeds[inputs[-1].name] = x
        for array in arrays:
            weights.extend(bytes(-len(weights) % ALIGN))
            args.append(TensorRef("weight", len(weights), array.shape, str(array.dtype)))
            weights += np.ascontiguousarray(array).tobytes()
        args.append(TensorRef("output", index, spec.y_shape, dtype))
        outputs.append(Port(name, dtype, spec.y_shape, spec.y_shape))
        functions[symbol] = spec.prim_func().with_attr("global_symbol", symbol)
        steps.append(Step(symbol, tuple(args), name))
    plan = Plan(tuple(inputs), tuple(outputs), tuple(steps), 0, weights)
    built = build_library(tvm.IRModule(functions), LEVELS[level])
    assert set(built.rules.values()) == {"contraction"}
    return emulator.run(plan, built, object_file(built.library), level, folder, feeds)


INT8 = {
    "sizes": Gemm((33,), 129, 70, precision="int8"),
    "row": Gemm((1,), 67, 33, precision="int8"),
    "small": Gemm((7,), 3, 15, precision="int8"),
    "2:4": Gemm((5,), 131, 70, Pattern(2, 4, 32), precision="int8"),
    "1:4": Gemm((6,), 99, 33, Pattern(1, 4, 16), precision="int8"),
    "3:4": Gemm((2,), 31, 16, Pattern(3, 4, 16), precision="int8"),
    "1:8": Gemm((3,), 67, 40, Pattern(1, 8, 32), precision="int8"),
    "conv": conv(1, 9, 7, 3, 18, 3, 3, (2, 2), (1, 1), (1, 1, 1, 1), precision="int8"),
    "conv groups": conv(1, 5, 5, 12, 8, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 2, precision="int8"),
    "conv 1x1": conv(1, 4, 4, 17, 16, 1, 1, precision="int8"),
    "conv 2:4": conv(1, 5, 5, 32, 32, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 1, Pattern(2, 4, 32), "int8"),
    "depthwise": conv(1, 9, 9, 33, 33, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 33, precision="int8"),
    "depthwise 5x5": conv(1, 9, 7, 17, 17, 5, 5, (2, 2), (1, 1), (2, 1, 2, 2), 17, precision="int8"),
    "depthwise of few": conv(1, 4, 5, 7, 14, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 7, precision="int8"),
}


@pytest.mark.parametrize("level", ["neon", "neondot", "neoni8mm"])
def test_sums_of_bytes(level, tmp_path, monkeypatch):
    """Every size and form, with operands at the ends of their ranges, zero points at both ends."""
    monkeypatch.setitem(emulator.CPUS, "neondot", "cortex-a76")  # has sdot and nothing more
    rng, kernels, want = np.random.default_rng(6), {}, {}
    # Without products there is little but lookups to see.
    names = ("row", "2:4", "1:4", "3:4") if level == "neon" else INT8
    for i, name in enumerate(names):
        spec = INT8[name]
        matrix = isinstance(spec, Gemm)
        spec = spec if matrix else replace(spec, zero=255 * (i % 2))
        depth = spec.k if matrix else spec.in_c // getattr(spec, "groups", spec.in_c)
        shape = (spec.n, depth) if matrix else (spec.out_c, spec.k_h, spec.k_w, depth)
        x, w = operands(rng, spec.x_shape, shape, getattr(spec, "pattern", DENSE), extreme=i % 3 == 0)
        kernels[name] = spec, [x], spec.pack(w), "int32"
        want[name] = x.astype("i8") @ w.T.astype("i8") if matrix else convolved(spec, x, w)
    for name, found in run(kernels, level, tmp_path).items():
        np.testing.assert_array_equal(found, want[name], err_msg=name)


BF16 = {
    "sizes": Gemm((33,), 129, 70, precision="bfloat16"),
    "row": Gemm((1,), 67, 33, precision="bfloat16"),
    "small": Gemm((7,), 1, 15, precision="bfloat16"),
    "2:4": Gemm((5,), 67, 70, Pattern(2, 4, 32), precision="bfloat16"),
    "conv": conv(1, 9, 7, 6, 18, 3, 3, (2, 2), (1, 1), (1, 1, 1, 1), precision="bfloat16"),
}


@pytest.mark.parametrize("level", ["neon", "neonbf16"])
def test_products_of_bfloat16(level, tmp_path):
    rng, kernels, want = np.random.default_rng(7), {}, {}
    rounded = lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float64)  # noqa: E731
    for name, spec in BF16.items():
        taps = 1 if isinstance(spec, Gemm) else 9
        n, depth = (spec.n, spec.k) if isinstance(spec, Gemm) else (spec.out_c, spec.in_c)
        w = rng.standard_normal((n, depth) if taps == 1 else (n, 3, 3, depth)).astype("f")
        w = w * operands(rng, (1,), w.shape, spec.pattern)[1].astype(
            bool
        )  # zeros where those have the pattern's
        x = rng.standard_normal(spec.x_shape).astype("f")
        kernels[name] = spec, [spec.kind.stored_activations(x)], spec.pack(w), "float32"
        seen, weight = rounded(x), rounded(w)
        if taps == 1:
            want[name] = seen @ weight.T
            continue
        padded = np.pad(seen, ((0, 0), (1, 1), (1, 1), (0, 0)))
        want[name] = np.zeros(spec.y_shape)
        for p, q in np.ndindex(3, 3):
            want[name] += (
                padded[:, p : p + 9 : 2, q : q + 7 : 2][:, : spec.out_h, : spec.out_w] @ weight[:, p, q].T
            )
    for name, found in run(kernels, level, tmp_path).items():
        assert np.abs(found - want[name]).max() <= 1e-5 * np.abs(want[name]).max(), name


WEIGHTS = {
    "8 bits": QuantGemm((1,), 100, 67, 8, 32),
    "8 bits, zeros": QuantGemm((5,), 256, 70, 8, 256, zeros=True),
    "4 bits": QuantGemm((2,), 96, 33, 4, 32),
    "8 bits, 1:4": QuantGemm((3,), 100, 100, 8, 32, Pattern(1, 4, 16)),
    "4 bits, 2:4": QuantGemm((1,), 96, 64, 4, 32, Pattern(2, 4, 32)),
}


@pytest.mark.parametrize("level", ["neondot", "neoni8mm"])
def test_products_of_narrow_weights(level, tmp_path):
    """Against float64 on the activations as they were rounded; all at the ends of their ranges."""
    rng, kernels, want = np.random.default_rng(8), {}, {}
    for name, spec in WEIGHTS.items():
        low, high = (-128, 127) if spec.bits == 8 else (-8, 7)
        q = rng.choice(np.array([low, high], np.int8), (spec.n, spec.k))
        q *= operands(rng, (1,), q.shape, spec.pattern)[1].astype(bool)
        shape = (spec.n, spec.groups.count)
        scale = (rng.random(shape) + 0.5).astype("f")
        zero = rng.choice(np.array([low, high], np.int8), shape) if spec.zeros else np.zeros(shape, np.int8)
        x = np.sign(rng.standard_normal(spec.x_shape)).astype("f")
        kernels[name] = spec, spec.groups.quantise(x), spec.pack(q, scale, zero), "float32"
        group = np.arange(spec.k) // spec.group
        want[name] = x @ ((q.astype("d") - zero[:, group]) * scale[:, group]).T
    for name, found in run(kernels, level, tmp_path).items():
        assert np.abs(found - want[name]).max() <= 2e-5 * np.abs(want[name]).max(), name


# Artifacts -----------------------------------------------------------------------------------------------

NETWORK = """(float[5,64] x) => (float[5,9] y) {
    a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Sigmoid(c) y = MatMul(d, w2)
}"""
#: Outputs, inputs and pattern of its layers.
LAYERS = (64, 64, DENSE), (32, 64, Pattern(2, 4, 32)), (9, 32, DENSE)


def floats() -> onnx.ModelProto:
    rng = np.random.default_rng(9)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {NETWORK}')
    for i, (n, k, pattern) in enumerate(LAYERS):
        w = rng.standard_normal((n, k)) / np.sqrt(k) * operands(rng, (1,), (n, k), pattern)[1].astype(bool)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(w.T.astype("f"), f"w{i}"))
    return proto


def integers() -> onnx.ModelProto:
    """The same of bytes, and attention."""
    net = Quantised()
    x = net.around(net.input([5, 64]), 0.03, 255)
    for i, (n, k, pattern) in enumerate(LAYERS):
        w = net.reals(net.constant(operands(net.rng, (1,), (n, k), pattern)[1].T), 0.001, np.int8(0))
        y = net.integers(net.op("MatMul", x, w), 0.04, 17 * i)
        x = net.reals(y, 0.04, np.uint8(17 * i))
    q, k, v = (net.around(net.input([1, 7, 2, 24]), 0.03, zero) for zero in (120, 3, 255))
    q, v = (net.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1]))
    p = net.around(net.op("Softmax", net.around(scores, 0.05, 99), axis=-1), 1 / 255, 0)
    return net.model(y, net.integers(net.op("MatMul", p, v), 0.02, 120))


@pytest.mark.parametrize(
    ("made", "precision", "levels", "error"),
    [
        (integers, "fp32", ["neoni8mm", "neondot", "neon"], 0),
        (floats, "bf16", ["neonbf16", "neon"], 2e-2),
        (floats, "int4-weights", ["neoni8mm", "neondot", "neon"], 1e-3),
    ],
)
def test_artifacts(made, precision, levels, error, tmp_path):
    """Every level was run, and is right; weights are there once, and the pattern is kept."""
    onnx.save(made(), tmp_path / "net.onnx")
    out = str(tmp_path / "net.sparsec")
    report = compile_model(CompileRequest(str(tmp_path / "net.onnx"), out, "arm", precision=precision))
    receipt = report["receipt"]
    assert report["levels"] == receipt["levels"] == receipt["emulated"] == levels
    layers, *attention = receipt["max_error"].values()
    assert layers["within"] and layers["max_rel_to_scale"] <= error
    assert all(found["max_abs"] <= 1 for found in attention)  # P may be rounded to the other side
    assert [(layer["kernel"], layer["pattern"]) for layer in report["layers"]][1] == ("sparse", "2:4x32")
    assert report["packings"] == [levels]


# Machine code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "gemm"), [("neondot", "2:4x32"), ("neoni8mm", "dense"), ("neonbf16", "dense")]
)
def test_inner_loops(level, gemm):
    """Nothing but products of words, loads and lookups; nothing spilled."""
    isa, name = loops.ISAS[level], f"gemm {gemm}"
    spec = loops.cases(isa.precision)[name]
    found = loops.row(level, name, spec)
    lookups = 12 if gemm == "2:4x32" else 0
    assert found["multiply_adds"] >= 80 and found["spilled"] == 0
    assert found["instructions"] <= 1.3 * found["multiply_adds"] + 2 * lookups
    loop = loops.inner_loop(LEVELS[level], spec)
    assert not [line for line in loop if re.match(r"(dup|ld1r|mul|mla|fmla|ushll|sshll)\b", line)]
    assert any(line.startswith("tbl") for line in loop) == bool(lookups)


# Targets -------------------------------------------------------------------------------------------------


def test_targets_and_their_levels():
    assert cpu_levels("arm") == ("neon",)
    assert cpu_levels("arm", "bf16") == ("neonbf16", "neon")
    assert cpu_levels("arm,x86", "int8") == (
        *("neoni8mm", "neondot", "neon"),
        *("v4vnni", "v4", "v3vnni", "v3"),
    )
    assert cpu_levels("arm:dot", "int8") == ("neondot",)


def test_linux_has_these_bits():
    """Where the kernel says so, by its own header, which ziglang has."""
    header = Path(find_spec("ziglang").origin).parent / "lib/libc/include/aarch64-linux-any/asm/hwcap.h"
    found = dict(re.findall(r"#define (HWCAP2?_\w+)\s+\(1 << (\d+)\)", header.read_text()))
    names = {"dotprod": "HWCAP_ASIMDDP", "i8mm": "HWCAP2_I8MM", "bf16": "HWCAP2_BF16"}
    source = (build.SOURCES / "lib/cpu.c").read_text()
    for name, theirs in names.items():
        word = theirs.partition("_")[0]
        assert cpu._HWCAP["aarch64"][name] == ({"HWCAP": 16, "HWCAP2": 26}[word], int(found[theirs]))
        assert f'{{"{name}", AT_{word}, {found[theirs]}}}' in source
