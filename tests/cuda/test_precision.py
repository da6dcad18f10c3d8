"""--precision bf16, fp16 and tf32 for GPUs: whole networks by the shipped loader on the emulating driver."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import zoo
from sparsec.compiler import reference
from sparsec.compiler.cuda.choices import NUMBERS
from sparsec.compiler.request import GPUS
from sparsec.runtime import load

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # at the end, where it shadows nothing
    sys.path.append(str(ROOT))

from benchmarks.cuda import static  # noqa: E402

SPARSE = "nm{n=2,m=4,block=1,min_size=256}"
PICKED = "nm{n=1,m=4,block=32,min_size=256}"
NETWORKS = [
    ("mlp", "bf16", PICKED),
    ("lenet", "fp16", SPARSE),
    ("transformer_encoder", "fp16", ""),
    ("transformer_encoder", "bf16", SPARSE),
    pytest.param("lenet", "bf16", "", marks=pytest.mark.slow),
    pytest.param("resnet18", "bf16", SPARSE, marks=pytest.mark.slow),
    pytest.param("resnet18", "tf32", "", marks=pytest.mark.slow),
    pytest.param("resnet50", "fp16", "", marks=pytest.mark.slow),
    pytest.param("mobilenet_v2", "bf16", "", marks=pytest.mark.slow),
    pytest.param("bert", "fp16", SPARSE, marks=pytest.mark.slow),
    pytest.param("vit_s16", "bf16", "", marks=pytest.mark.slow),
    pytest.param("gpt2_prefill", "bf16", SPARSE, marks=pytest.mark.slow),
    pytest.param("unet", "fp16", "", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session")
def pruned(tmp_path_factory):
    """``pruned(path, passes)``: the network that a compilation with ``passes`` is about, for ONNX Runtime."""
    from sparsec.compiler.ingest import ingest
    from sparsec.passes import run_pipeline

    def prune(path, spec):
        if not spec:
            return path
        model = ingest(path)
        run_pipeline(model, spec)
        out = tmp_path_factory.mktemp("pruned") / "model.onnx"
        ir.save(model, out)
        return out

    return prune


@pytest.mark.parametrize("name, precision, passes", NETWORKS)
def test_small_networks(name, precision, passes, driver, compile_for_gpu, ort_run, pruned):
    path, feeds = zoo.export(name, small=True), zoo.feeds(name, small=True)
    compiled = compile_for_gpu(path, precision=precision, passes=passes)
    expected = ort_run(pruned(path, passes), feeds)
    layers = compiled.report["layers"]
    short = [layer for layer in layers if layer.get("precision", "float32") != "float32"]
    assert short and compiled.report["kernels"]["tensor_gemm"] > 0
    if "transformer" in name:
        assert (
            compiled.source.count(f"sparsec_pair_{NUMBERS[precision]}(") > 1
        )  # attention's, after the prelude's
        (found,) = {f["after"] for f in compiled.report["findings"] if "attention" in f["reason"]}
        assert found == NUMBERS[precision]
    if passes:
        assert {layer["kernel"] for layer in short if layer["pattern"] != "dense"} == {"sparse"}
        assert ("mma.sp::ordered_metadata" if passes == SPARSE else "prmt.b32") in compiled.source
    for order in range(3):
        driver.be(compiled.emulated, order=order)
        with load(compiled.path) as model:
            found = model(feeds)
            assert model.manifest["precision"] == precision
        for output, want in expected.items():
            if want.dtype.kind != "f":
                continue
            error = reference.compare(found[output], want, precision=precision)
            assert error.within and error.max_abs > 1e-6 * error.scale, (output, error)


@pytest.mark.slow
def test_every_access_is_a_right_one(driver, compile_for_gpu):
    compiled = compile_for_gpu(zoo.export("transformer_encoder", small=True), precision="bf16", passes=SPARSE)
    driver.be(compiled.watched())
    with load(compiled.path) as model:
        model(zoo.feeds("transformer_encoder", small=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, precision", [("transformer_encoder", "fp16"), ("lenet", "bf16"), ("resnet18", "fp16")]
)
def test_networks_become_machine_code_without_spills(name, precision, compile_for_gpu):
    if not (shutil.which("nvcc") and static.disassembler()):
        pytest.skip("needs nvcc and nvdisasm (CUDA toolkit; pip install nvidia-cuda-nvdisasm)")
    source = compile_for_gpu(zoo.export(name, small=True), precision=precision, passes=SPARSE).source
    for arch in GPUS:
        made = static.compile_all(source, arch)
        assert not any(kernel.spilled for kernel in made.values()), arch
        assert any(i.startswith("HMMA.SP") for kernel in made.values() for i in kernel.instructions), arch


def decided(model: bytes, tmp_path, precision: str, target: str = "cuda", **more) -> dict[str, list[dict]]:
    """What is decided about each layer of a model in ONNX's text form; nothing is compiled."""
    from sparsec.compiler.cli.explain import analyse
    from sparsec.compiler.request import CompileRequest

    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    request = CompileRequest(str(path), "", target, precision=precision, **more).to_json()
    found: dict[str, list[dict]] = {}
    for finding in analyse(request, lambda line: None)["findings"]:
        found.setdefault(finding["pass_name"], []).append(finding)
    return found


def layers(rows: int, weight: np.ndarray) -> bytes:
    """Two layers: the second is the last."""
    n, k = weight.shape
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> '
        f"g (float[{rows},{k}] x) => (float[{rows},8] y) {{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }}"
    )
    arrays = {"w": weight.T.astype(np.float32), "v": np.ones((n, 8), np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


RANDOM = np.random.default_rng(7).standard_normal((256, 256))


def test_the_reason_is_told_for_each_layer(tmp_path):
    first, last = decided(layers(512, RANDOM), tmp_path, "bf16")["precision"]
    assert (first["outcome"], first["after"]) == ("applied", "bfloat16 on tensor cores")
    assert re.fullmatch(
        r"estimated: dense bfloat16 on tensor cores 0\.\d\dx .* dense float32", first["reason"]
    )
    assert (last["outcome"], last["after"]) == ("declined", "float32") and "last layer" in last["reason"]


def test_the_last_layer_is_narrow_where_reading_its_weight_takes_the_time(tmp_path):
    for rows, after in ((1, "bfloat16 on tensor cores"), (4, "bfloat16 on tensor cores"), (5, "float32")):
        assert decided(layers(rows, RANDOM), tmp_path, "bf16")["precision"][1]["after"] == after


@pytest.mark.parametrize("precision, after", [("bf16", "bfloat16 inputs"), ("tf32", "float32")])
def test_depthwise_layers_read_16_bits(tmp_path, precision, after):
    body = "a = Conv(x, u) b = Conv <group = 32> (a, v) y = Conv(b, w)"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[8,16,9,9] x) => (float[8,8,7,7] y) {{ {body} }}'
    )
    for name, shape in (("u", (32, 16, 1, 1)), ("v", (32, 1, 3, 3)), ("w", (8, 32, 1, 1))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    model = onnx.shape_inference.infer_shapes(model).SerializeToString()
    assert decided(model, tmp_path, precision)["precision"][1]["after"] == after


def test_tf32_pays_where_products_limit(tmp_path):
    """Not where memory does: its numbers take four bytes, too."""
    many, few = (decided(layers(rows, RANDOM), tmp_path, "tf32")["precision"][0] for rows in (4096, 1))
    assert (many["after"], few["after"]) == ("tf32 on tensor cores", "float32")
    assert "dense float32 1.00x the time of dense tf32" in few["reason"]


def test_weights_too_large_for_float16_stay_float32(tmp_path):
    huge = RANDOM.copy()
    huge[3, 4] = 1e5
    assert decided(layers(512, huge), tmp_path, "bf16")["precision"][0]["outcome"] == "applied"
    (first, _) = decided(layers(512, huge), tmp_path, "fp16")["precision"]
    assert first["reason"] == "weights up to 1e+05 are beyond 65504, the largest float16"


@pytest.mark.parametrize(
    "pattern, rows, kernel, precision",
    [
        ("n=2,m=4,block=1", 512, "sparse", "float16 on tensor cores"),
        ("n=1,m=4,block=1", 512, "sparse", "float16 on tensor cores"),  # is 2:4 as well
        ("n=4,m=8,block=1", 512, "dense", "float16 on tensor cores"),
        ("n=1,m=8,block=32", 512, "sparse", "float16 on tensor cores"),
        ("n=1,m=8,block=32", 1, "sparse", "float32"),  # an eighth of the bytes
        ("n=4,m=16,block=16", 512, "sparse", "float16 on tensor cores"),  # picked
        ("n=4,m=8,block=8", 512, "dense", "float16 on tensor cores"),
    ],
)
def test_which_patterns_are_2of4(pattern, rows, kernel, precision, tmp_path):
    spec = f"nm{{{pattern},min_size=4096}}"
    found = decided(layers(rows, RANDOM), tmp_path, "fp16", passes=spec)
    assert [f["after"] for f in found["choose"]] == [kernel]
    assert found["precision"][0]["after"] == precision


def test_values_beyond_float16_are_said_to_be(tmp_path):
    from sparsec.compiler.check import Oracle
    from sparsec.compiler.errors import CompileError

    x = np.full((1, 256), 300, np.float32)
    oracle = Oracle(layers(1, np.ones((256, 256))), {"x": x}, "fp16")
    with pytest.raises(
        CompileError, match="beyond 65504, the largest float16; .* --precision bf16 has float32's"
    ):
        oracle.require({"y": np.full((1, 8), np.inf, np.float32)}, "the kernels for v4")
