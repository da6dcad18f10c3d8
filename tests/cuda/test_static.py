"""The page of what nvcc makes of our kernels: up to date, and free of complaints."""

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # at the end, where it shadows nothing
    sys.path.append(str(ROOT))

from benchmarks.cuda import static  # noqa: E402
from benchmarks.cuda.catalogue import Case, cases  # noqa: E402

PAGE = ROOT / "docs" / "cuda-kernels.md"
TOOLS = pytest.mark.skipif(
    not (shutil.which("nvcc") and static.disassembler()),
    reason="needs nvcc and nvdisasm (CUDA toolkit; pip install nvidia-cuda-nvdisasm)",
)


@pytest.fixture(scope="module")
def kernels():
    return static.sources(cases())


def test_the_page_is_about_the_kernels_as_they_are(kernels):
    text = PAGE.read_text()
    stale = "kernels have changed: python -m benchmarks.cuda.static > docs/cuda-kernels.md"
    assert f"Sources: {static.digest(kernels)}\n" in text, stale
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [case.name for case in cases()]


def test_rules_of_ours_take_every_case(kernels):
    assert set(kernels.rules.values()) == {
        "tensor_gemm",
        "contraction",
        "depthwise",
        "row",
        "vector",
        "attention",
        "top_k",
    }


@TOOLS
@pytest.mark.slow
def test_the_page_is_what_nvcc_says():
    text, wrong = static.page()
    assert not wrong
    assert text == PAGE.read_text()


@TOOLS
def test_a_sparse_kernel_on_the_oldest_architecture():
    (case,) = (c for c in cases() if c.name == "f16_gemm_2of4__32x16")
    kernels = static.sources([case])
    (launch,) = kernels.launches[case.name]
    found = static.compile_all(kernels.source, "sm_80")[launch.kernel]
    assert not static.complaints(case, "sm_80", launch.shared, found)


def test_complaints():
    case = Case("k", None, ("HMMA.SP",))
    good = static.Compiled(64, 0, 0, Counter({"HMMA.SP.16832.F32": 8}))
    assert static.complaints(case, "sm_80", 1024, good) == []
    assert static.complaints(case, "sm_89", 100 * 1024, good) == [
        "k on sm_89: 102400 bytes of shared memory, more than there are"
    ]
    bad = static.Compiled(255, 16, 0, Counter({"HMMA.16816.F32": 8}))
    assert static.complaints(case, "sm_80", 0, bad) == [
        "k on sm_80: 16 bytes of registers are spilled",
        "k on sm_80: no HMMA.SP in the machine code",
    ]


@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks",
    [
        ("sm_80", 256, 128, 0, 2),  # registers
        ("sm_80", 256, 32, 0, 8),  # warps
        ("sm_80", 32, 16, 0, 32),  # blocks
        ("sm_87", 256, 32, 0, 6),
        ("sm_89", 256, 64, 48 * 1024, 2),  # shared memory
        ("sm_90", 128, 168, 75 * 1024, 3),
    ],
)
def test_resident_blocks(arch, threads, registers, shared, blocks):
    """As NVIDIA's occupancy calculator has them."""
    assert static.resident(arch, threads, registers, shared) == blocks
