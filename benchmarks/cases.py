"""Single operators as ONNX files: the shapes of the networks, and the work that each is.

A case goes through the same door as a network, so a time includes the call.  GEMV out of cache and
convolutions are short chains: one layer would measure a cache that it does not have, or transposes that no
network needs.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from . import int8_layers
from .prune import VARIANTS, Variant, prune
from .subjects import cache, publish, write_npz

PATTERNS = VARIANTS | {
    f"{n}:{m}x{block}": Variant(n, m, block)
    for n, m in ((2, 4), (1, 4), (1, 8))
    for block in (1, 4, 16, 32, 64)
}
SOME = ("dense", "2:4x1", "2:4x4", "2:4x32", "1:4x32", "1:8x32", "90%")
GEMMS = {(128, 768, 3072): tuple(PATTERNS)} | dict.fromkeys(
    [(128, 3072, 768), (128, 1024, 1024), (128, 384, 1536), (512, 768, 3072), (512, 3072, 768),
     (512, 1024, 1024), (512, 384, 1536), (16, 768, 3072)], SOME
)  # fmt: skip
#: Channels, height and width, kernel, groups; twice there and back, so that the chain closes.
CONVS = [
    (64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1), (64, 256, 56, 1, 1),
    (256, 1024, 14, 1, 1), (96, 24, 56, 1, 1), (144, 144, 56, 3, 144), (576, 576, 14, 3, 576),
]  # fmt: skip
#: Heads, queries, keys, values of each.
ATTENTION = [(12, 128, 128, 64), (12, 128, 128, 32), (6, 197, 197, 64), (12, 512, 512, 64)]
ROWS = {
    "softmax": [(1024, 128), (1024, 1024), (32, 32000), (8192, 4096)],
    "layer_norm": [(128, 768), (8192, 4096)],
    "gelu": [(128, 3072), (8192, 4096)],
    "soft_threshold": [(128, 3072), (8192, 4096)],
    "sparsemax": [(1024, 128), (1024, 1024), (12 * 512, 512), (32, 32000)],
    "entmax": [(1024, 128), (1024, 1024), (12 * 512, 512), (32, 32000)],
}
#: What a peer runs instead, where it has no such operator: the standard one that it stands in for.
RIVALS = {"soft_threshold": "relu", "sparsemax": "softmax", "entmax": "softmax"}


@dataclass(frozen=True)
class Case:
    """``flops``: multiply-adds count 2, pruned ones count; ``moved``: bytes of weights that are kept, with
    their indices, or bytes in and out; ``make`` builds the model."""

    name: str
    family: str
    variant: str
    flops: float
    moved: float
    make: Callable[[], onnx.ModelProto]
    rival: "Case | None" = None

    def files(self) -> tuple[Path, Path]:
        """The ONNX file and an npz of inputs; made once."""
        sources = (Path(__file__).with_name(name) for name in ("cases.py", "prune.py", "int8_layers.py"))
        key = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
        folder = cache() / "kernels" / key.hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.name.replace(" ", "_").replace(":", "of").replace("%", "pc")
        file, feeds = folder / f"{stem}.onnx", folder / f"{stem}.npz"
        if not file.exists():
            model = self.make()
            if self.variant != "dense" and self.family != "int8":
                prune(model, PATTERNS[self.variant])
            rng, values = np.random.default_rng(0), {}
            for port in model.graph.input:
                shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
                if port.type.tensor_type.elem_type == TensorProto.UINT8:
                    values[port.name] = rng.integers(0, 256, shape, np.uint8)
                else:
                    values[port.name] = rng.standard_normal(shape, np.float32)
            publish(feeds, lambda draft: write_npz(draft, values))
            publish(file, lambda draft: onnx.save(model, draft))
        return file, feeds


def cases() -> list[Case]:
    found = []
    for (m, k, n), patterns in GEMMS.items():
        for variant in patterns:
            work = 2.0 * m * k * n
            found.append(
                Case(
                    f"gemm {m}x{k}x{n} {variant}",
                    "gemm",
                    variant,
                    work,
                    0,
                    lambda a=(m, k, n): chain(a[0], a[1:]),
                )
            )
    # The weights of all layers together are larger than the last cache.
    for label, sizes in (
        ("1x4096x4096", (4096, 4096)),
        ("1x768x3072x768 12 times", (768, 3072) * 12 + (768,)),
        ("1x768x50257", (768, 50257)),
    ):
        macs = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
        for variant in ("dense", "2:4x1", "2:4x32", "1:4x32"):
            moved = macs * stored_bytes(PATTERNS[variant])
            make = lambda sizes=sizes: chain(1, sizes)  # noqa: E731
            found.append(Case(f"gemv {label} {variant}", "gemv", variant, 2.0 * macs, moved, make))
    for inner, outer, size, kernel, groups in CONVS:
        macs = inner * outer * size**2 * kernel**2 // groups
        for variant in ("dense",) if groups > 1 else SOME[:-2]:
            name = f"conv {kernel}x{kernel} {inner}-{outer} {size}x{size} g{groups} {variant}"
            make = lambda a=(inner, outer, size, kernel, groups): convs(*a)  # noqa: E731
            found.append(Case(name, "conv", variant, 2.0 * 4 * macs, 0, make))
    for heads, queries, keys, depth in ATTENTION:
        name = f"attention {heads}x{queries}x{keys}x{depth}"
        make = lambda a=(heads, queries, keys, depth): attention(*a)  # noqa: E731
        found.append(Case(name, "attention", "dense", 4.0 * heads * queries * keys * depth, 0, make))
    for op, shapes in ROWS.items():
        for shape in shapes:
            found.append(rows(op, shape))
    return found + int8_cases()


def int8_cases() -> list[Case]:
    """Layers of a quantised network; they come pruned."""
    found = []
    for variant in int8_layers.VARIANTS:
        pattern = PATTERNS[variant]
        for m, k, n in int8_layers.GEMMS:
            make = functools.partial(int8_layers.gemm, m, k, n, pattern)
            found.append(Case(f"int8 gemm {m}x{k}x{n} {variant}", "int8", variant, 2.0 * m * k * n, 0, make))
        for inner, outer, size, kernel in int8_layers.CONVS:
            make = functools.partial(int8_layers.conv, inner, outer, size, kernel, pattern)
            name = f"int8 conv {kernel}x{kernel} {inner}-{outer} {size}x{size} {variant}"
            work = 2.0 * inner * outer * size**2 * kernel**2
            found.append(Case(name, "int8", variant, work, 0, make))
    return found


def attention(heads: int, queries: int, keys: int, depth: int) -> onnx.ModelProto:
    """From projections [1, tokens, heads, depth] back to that layout, with softmax."""
    inputs = f"float[1, {queries}, {heads}, {depth}] Q, float[1, {keys}, {heads}, {depth}] K"
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g ({inputs}, float[1, {keys}, {heads}, {depth}] V) => (float[1, {queries}, {heads}, {depth}] Y)
        {{
            q = Transpose<perm = [0, 2, 1, 3]> (Q)
            k = Transpose<perm = [0, 2, 3, 1]> (K)
            v = Transpose<perm = [0, 2, 1, 3]> (V)
            scale = Constant<value_float = 0.125> ()
            s = MatMul (q, k)
            t = Mul (s, scale)
            p = Softmax<axis = -1> (t)
            y = MatMul (p, v)
            Y = Transpose<perm = [0, 2, 1, 3]> (y)
        }}"""
    )


def stored_bytes(variant: Variant) -> float:
    """For each weight of the dense layer: 4 bytes if kept, and the bits of its place in the group, shared."""
    return variant.kept * (4 + np.log2(variant.m) / 8 / variant.block)


def rows(op: str, shape: tuple[int, int]) -> Case:
    rival = rows(RIVALS[op], shape) if op in RIVALS else None
    name = f"{op} {shape[0]}x{shape[1]}"
    return Case(name, "rows", "dense", 0, 8.0 * shape[0] * shape[1], lambda: ROW_MAKERS[op](shape), rival)


def chain(m: int, sizes: tuple[int, ...]) -> onnx.ModelProto:
    """``x @ W0 @ W1 ...`` with normal weights of variance 1/k."""
    rng, nodes, weights = np.random.default_rng(1), [], []
    for i, (k, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weights.append((f"w{i}", rng.standard_normal((k, n), np.float32) / np.float32(k**0.5)))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    return model(nodes, weights, "x0", (m, sizes[0]), nodes[-1].output[0], (m, sizes[-1]))


def convs(inner: int, outer: int, size: int, kernel: int, groups: int) -> onnx.ModelProto:
    """Four convolutions with Relu, inner to outer channels and back, twice."""
    rng, nodes, weights = np.random.default_rng(1), [], []
    for i in range(4):
        c, o = (inner, outer) if i % 2 == 0 else (outer, inner)
        scale = np.float32((2 / (c // groups * kernel**2)) ** 0.5)
        weights.append((f"w{i}", rng.standard_normal((o, c // groups, kernel, kernel), np.float32) * scale))
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"y{i}"], pads=[kernel // 2] * 4, group=groups)
        )
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    shape = (1, inner, size, size)
    return model(nodes, weights, "x0", shape, "x4", shape)


def model(nodes, weights, x: str, x_shape, y: str, y_shape) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, y_shape)],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def one(op: str, inputs=(), **attributes):
    """A maker of a model with one operator on ``x`` and the constants ``inputs(shape)``."""

    def make(shape):
        weights = list(inputs(shape)) if inputs else []
        node = helper.make_node(op, ["x", *(name for name, _ in weights)], ["y"], **attributes)
        return model([node], weights, "x", shape, "y", shape)

    return make


def gelu(shape) -> onnx.ModelProto:
    """x/2 (1 + erf(x / sqrt 2)), spelled out as exporters do before opset 20."""
    constants = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    nodes = [
        helper.make_node("Div", ["x", "root"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["y"]),
    ]
    return model(nodes, [(k, np.float32(v)) for k, v in constants.items()], "x", shape, "y", shape)


def of_entmax(function: str, shape) -> onnx.ModelProto:
    """The chain of TopK, CumSum and their like that exporting `entmax.<function>` leaves."""
    import io

    import entmax
    import torch

    class Normaliser(torch.nn.Module):
        def forward(self, x):
            return getattr(entmax, function)(x, -1)

    stream = io.BytesIO()
    options = {"input_names": ["x"], "output_names": ["y"], "dynamo": False, "opset_version": 17}
    torch.onnx.export(Normaliser(), (torch.randn(shape),), stream, **options)
    return onnx.load_from_string(stream.getvalue())


ROW_MAKERS = {
    "softmax": one("Softmax", axis=-1),
    "layer_norm": one(
        "LayerNormalization", lambda s: [(n, np.ones(s[1], np.float32)) for n in "sb"], axis=-1
    ),
    "gelu": gelu,
    "relu": one("Relu"),
    "soft_threshold": one("Shrink", lambd=0.5, bias=0.5),
    "sparsemax": functools.partial(of_entmax, "sparsemax"),
    "entmax": functools.partial(of_entmax, "entmax15"),
}
