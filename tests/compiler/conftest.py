"""What the compiler's tests share: models made in one line, and their kernels run without linking."""

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import pytest

DOMAIN = "ai.sparsec"


def attribute_free(dtype) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@dataclass(frozen=True)
class Run:
    """One run: outputs by name, and the plan whose steps were called."""

    outputs: dict[str, np.ndarray]
    plan: object


@pytest.fixture(scope="session")
def single_op():
    """``single_op("Relu", {"x": array}, axis=1)``: a model of one node, as ``onnx.ModelProto``.

    ``inputs`` maps names to arrays in the node's order (None: absent); those named in ``constants``
    become initializers.  ``outputs`` counts the node's outputs, "" leaves one out.
    """

    def build(
        op: str,
        inputs: dict[str, np.ndarray | None],
        *,
        constants: tuple[str, ...] = (),
        outputs: tuple[str, ...] = ("y",),
        opset: int = 20,
        domain: str = "",
        **attributes,
    ) -> onnx.ModelProto:
        names = [name if array is not None else "" for name, array in inputs.items()]
        while names and not names[-1]:
            names.pop()
        node = onnx.helper.make_node(op, names, list(outputs), name="node", domain=domain, **attributes)
        given = {name: array for name, array in inputs.items() if array is not None}
        free = [
            onnx.helper.make_tensor_value_info(name, attribute_free(array.dtype), array.shape)
            for name, array in given.items()
            if name not in constants
        ]
        fixed = [onnx.numpy_helper.from_array(given[name], name) for name in constants if name in given]
        results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
        graph = onnx.helper.make_graph([node], "g", free, results, fixed)
        imports = [onnx.helper.make_opsetid("", opset)]
        if domain:
            imports.append(onnx.helper.make_opsetid(domain, 1))
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=not domain, data_prop=True)

    return build


@pytest.fixture(scope="session")
def run_graph(tmp_path_factory):
    """``run_graph(model, feeds, text="nm") -> Run``: the compiler's whole road but linking.

    ``model`` is an ``onnx.ModelProto``.  The plan is walked here, on a NumPy arena filled with NaN, so a
    kernel that reads what nobody wrote is seen.
    """
    from sparsec import passes
    from sparsec.compiler.channels_last import channels_last
    from sparsec.compiler.front import ports
    from sparsec.compiler.ingest import ingest
    from sparsec.compiler.lower import lower
    from sparsec.compiler.objects import build_library
    from sparsec.compiler.planner import make_plan
    from sparsec.compiler.request import native_level
    from sparsec.compiler.to_relax import Importer
    from sparsec.schedules.target import X86_LEVELS

    folder = tmp_path_factory.mktemp("graphs")

    def run(model: onnx.ModelProto, feeds: dict, *, text: str = "", level: str | None = None) -> Run:
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        graph = ingest(path)
        inputs, outputs = ports(graph.graph.inputs), ports(graph.graph.outputs)
        passes.run_pipeline(graph, passes.parse_pipeline(text))
        channels_last(graph)
        importer = Importer(graph, {})
        plan, kernels = make_plan(lower(importer.run()), inputs, outputs, importer.labels)
        built = build_library(kernels, X86_LEVELS[level or native_level()])
        return Run(walk(plan, built.library, feeds), plan)

    return run


def walk(plan, library, feeds: dict) -> dict[str, np.ndarray]:
    """Every step of ``plan``, called through TVM; tensors are copied in and out of their space."""
    import tvm

    outputs = [np.zeros(prod(p.shape) * np.dtype(p.dtype).itemsize, np.uint8) for p in plan.outputs]
    inputs = [np.ascontiguousarray(feeds[p.name]).reshape(-1).view(np.uint8) for p in plan.inputs]
    whole = {
        "arena": np.full(plan.arena_size, 0xFF, np.uint8),
        "weight": np.frombuffer(plan.weights, np.uint8),
    }

    def place(ref):
        size = prod(ref.shape) * np.dtype(ref.dtype).itemsize
        if ref.space in whole:
            return whole[ref.space][ref.where : ref.where + size]
        return {"input": inputs, "output": outputs}[ref.space][ref.where]

    for step in plan.steps:
        places = [place(ref) for ref in step.args]
        tensors = [
            tvm.runtime.tensor(data.view(ref.dtype).reshape(ref.shape))
            for data, ref in zip(places, step.args, strict=True)
        ]
        library[step.symbol](*tensors)
        for data, ref, tensor in zip(places, step.args, tensors, strict=True):
            if ref.space in ("arena", "output"):
                data[:] = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return {
        port.name: data.view(port.dtype).reshape(port.shape)
        for port, data in zip(plan.outputs, outputs, strict=True)
    }


@pytest.fixture(scope="session")
def agree():
    """``agree(found, expected)``: the design's tolerance per output; says the worst place if it fails."""

    def check(found: dict, expected: dict, *, relative: float = 1e-5, absolute: float = 1e-6) -> None:
        assert list(found) == list(expected)
        for name, want in expected.items():
            got = found[name]
            assert got.dtype == want.dtype and got.shape == want.shape, name
            if want.dtype.kind not in "fV":
                np.testing.assert_array_equal(got, want, err_msg=name)
                continue
            a, b = got.astype(np.float64), want.astype(np.float64)
            scale = np.max(np.abs(b), initial=0, where=np.isfinite(b))
            np.testing.assert_allclose(
                a, b, rtol=0, atol=relative * scale + absolute, equal_nan=True, err_msg=name
            )

    return check


@pytest.fixture(scope="session")
def same_as_ort(run_graph, ort_run, agree):
    """Run ``model`` through the compiler and ONNX Runtime, compare, and return the ``Run``."""

    def check(model: onnx.ModelProto, feeds: dict, **options) -> Run:
        tolerance = {key: options.pop(key) for key in ("relative", "absolute") if key in options}
        found = run_graph(model, feeds, **options)
        agree(found.outputs, ort_run(model.SerializeToString(), feeds), **tolerance)
        return found

    return check


@pytest.fixture(scope="session")
def text_graph():
    """``text_graph("(float[2] x) => (y) { y = Relu(x) }")``: a model in ONNX's own text form."""

    def build(body: str, opset: int = 20, functions: str = "") -> onnx.ModelProto:
        imports = f'"" : {opset}, "{DOMAIN}" : 1'
        model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {body} {functions}")
        return onnx.shape_inference.infer_shapes(model, data_prop=True)

    return build
