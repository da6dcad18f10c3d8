"""A small model made of TVM kernels of our own: matmul + exp in parallel, bias, a count."""

import ctypes
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sparsec.runtime import build, container


@dataclass(frozen=True)
class Tiny:
    """``y = exp(x @ w) + b``, ``kept = number of true in mask``; x f32[16, 32], mask bool[16]."""

    path: Path
    manifest: dict
    members: dict
    w: np.ndarray
    b: np.ndarray

    def inputs(self, seed=0):
        rng = np.random.default_rng(seed)
        return {
            "x": rng.normal(size=(16, 32)).astype("float32"),
            "mask": rng.integers(0, 2, 16).astype(bool),
        }

    def expected(self, inputs):
        y = np.exp(inputs["x"].astype("float64") @ self.w.astype("float64")) + self.b
        return {"y": y, "kept": np.count_nonzero(inputs["mask"])}

    def check(self, results, inputs):
        wanted = self.expected(inputs)
        assert set(results) == {"y", "kept"}
        assert results["y"].dtype == np.float32 and results["y"].shape == (16, 8)
        assert results["kept"].dtype == np.int64 and results["kept"].shape == ()
        assert np.abs(results["y"] - wanted["y"]).max() <= 1e-5 * np.abs(wanted["y"]).max()
        assert results["kept"] == wanted["kept"]

    def regions(self):
        """Where each kind of bytes starts: headers and data of every member, directory, end record."""
        data = self.path.read_bytes()
        members = container.read_members(lambda at, n: data[at : at + n], len(data))
        starts = [at for m in members for at in (m.header, m.header + 30, m.offset)]
        return [*starts, members[-1].offset + members[-1].size, len(data) - 22, len(data)]

    def contents(self):
        """Member name -> bytes, in the file's order."""
        data = self.path.read_bytes()
        members = container.read_members(lambda at, n: data[at : at + n], len(data))
        return {m.name: data[m.offset : m.offset + m.size] for m in members}

    def rewritten(self, path, change):
        """The artifact with its manifest's text replaced, otherwise well-formed."""
        contents = self.contents()
        contents["manifest.json"] = change(contents["manifest.json"].decode()).encode()
        return self.assemble(path, contents)

    @staticmethod
    def assemble(path, contents):
        """Write a well-formed container of these members, whatever is in them; returns ``path``."""
        out, placed, at = [], [], 0
        for name, data in contents.items():
            m = container.place(name, len(data), zlib.crc32(data), at)
            out += [container.local_header(m), data]
            placed.append(m)
            at = m.offset + m.size
        directory = b"".join(map(container.central_entry, placed))
        end = container.end_record(len(placed), len(directory), at)
        path.write_bytes(b"".join([*out, directory, end]))
        return path


def kernels():
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def product(
        X: T.Buffer((16, 32), "float32"), W: T.Buffer((32, 8), "float32"), Y: T.Buffer((16, 8), "float32")
    ):
        T.func_attr({"global_symbol": "product", "tirx.noalias": True})
        for i in T.parallel(16):
            with T.sblock("row"):
                acc = T.sblock_alloc_buffer((1000,), "float32")  # large enough to be a workspace
                for j in T.serial(8):
                    acc[j] = T.float32(0)
                    for k in T.serial(32):
                        acc[j] += X[i, k] * W[k, j]
                for j in T.serial(8):
                    Y[i, j] = T.exp(acc[j])

    @T.prim_func(s_tir=True)
    def bias(X: T.Buffer((16, 8), "float32"), B: T.Buffer((8,), "float32"), Y: T.Buffer((16, 8), "float32")):
        T.func_attr({"global_symbol": "bias", "tirx.noalias": True})
        for i in T.serial(16):
            for j in T.serial(8):
                with T.sblock("element"):
                    Y[i, j] = X[i, j] + B[j]

    @T.prim_func(s_tir=True)
    def count(M: T.Buffer((16,), "bool"), C: T.Buffer((), "int64")):
        T.func_attr({"global_symbol": "count", "tirx.noalias": True})
        with T.sblock("all"):
            C[()] = T.int64(0)
            for i in T.serial(16):
                C[()] = C[()] + T.cast(M[i], "int64")

    return {"product": product, "bias": bias, "count": count}


def tiny_plan(weights):
    from sparsec.compiler.plan import Plan, Port, Step, TensorRef

    hidden = TensorRef("arena", 0, (16, 8), "float32")
    x = TensorRef("input", 0, (16, 32), "float32")
    w = TensorRef("weight", 0, (32, 8), "float32")
    b = TensorRef("weight", 1024, (8,), "float32")
    return Plan(
        inputs=(Port("x", "float32", (16, 32), ("batch", 32)), Port("mask", "bool", (16,), ("batch",))),
        outputs=(Port("y", "float32", (16, 8), ("batch", 8)), Port("kept", "int64", (), ())),
        steps=(
            Step("product", (x, w, hidden), "MatMul_0, Exp_1"),
            Step("bias", (hidden, b, TensorRef("output", 0, (16, 8), "float32")), 'a "strange"\n name ??/ é'),
            Step(
                "count",
                (TensorRef("input", 1, (16,), "bool"), TensorRef("output", 1, (), "int64")),
                "ReduceSum_2",
            ),
        ),
        arena_size=512,
        weights=weights,
    )


@pytest.fixture(scope="session")
def kernel_object(tmp_path_factory):
    import tvm
    from tvm.target import Target

    path = tmp_path_factory.mktemp("kernels") / "kernels.o"
    target = Target({"kind": "llvm", "mcpu": "x86-64-v2", "mtriple": "x86_64-unknown-linux-gnu"})
    tvm.tirx.build(tvm.IRModule(kernels()), target=target).write_to_file(str(path), "o")
    return path


@pytest.fixture(scope="session")
def plan_of_tiny():
    return tiny_plan


@pytest.fixture(scope="session")
def tiny(kernel_object, tmp_path_factory):
    from sparsec.compiler.native import link
    from sparsec.compiler.package import base_manifest, write_artifact
    from sparsec.runtime.cpu import LEVEL_FEATURES

    rng = np.random.default_rng(7)
    w = (rng.normal(size=(32, 8)) * 0.1).astype("float32")
    b = rng.normal(size=8).astype("float32")
    plan = tiny_plan(w.tobytes() + b.tobytes())
    folder = tmp_path_factory.mktemp("tiny")
    link(plan, [kernel_object], 4032, folder / "model.so", "v2")
    manifest = base_manifest(
        plan,
        sparsec_version="0.1.0",
        tvm_version="0.27.0",
        source_sha256="0" * 64,
        libraries={"v2": LEVEL_FEATURES["v2"]},
    )
    members = {"model.v2.so": (folder / "model.so").read_bytes(), "weights.bin": plan.weights}
    write_artifact(folder / "tiny.sparsec", manifest, members)
    return Tiny(folder / "tiny.sparsec", manifest, members, w, b)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The folder with libsparsec.a and libsparsec.so."""
    archive, shared = build.build_library(tmp_path_factory.mktemp("libsparsec"))
    assert archive.stat().st_size < 100_000 and shared.stat().st_size < 100_000
    return shared.parent


@pytest.fixture(scope="session")
def attempt(library):
    """``attempt(path) -> (status, message)`` of sparsec_open."""
    lib = ctypes.CDLL(str(library / "libsparsec.so"))
    lib.sparsec_close.argtypes = [ctypes.c_void_p]

    def call(path):
        model, error = ctypes.c_void_p(), ctypes.create_string_buffer(1024)
        status = lib.sparsec_open(os.fsencode(path), None, ctypes.byref(model), error)
        lib.sparsec_close(model)
        return status, error.raw[4:].split(b"\0")[0].decode()

    return call
