"""The bundle for a machine with a GPU: small problems by its loader, on the emulating driver."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # at the end, where it shadows nothing
    sys.path.append(str(ROOT))

from benchmarks.cuda import bare, bundle  # noqa: E402
from benchmarks.cuda.catalogue import attention  # noqa: E402
from benchmarks.cuda.driver import Device, DriverError  # noqa: E402
from benchmarks.cuda.problems import expected, inputs  # noqa: E402

FAT_BINARY = b"\x50\xed\x55\xba" + bytes(60)


@pytest.fixture(scope="module")
def small():
    """One problem of each kind: kernels and plan."""
    some = bundle.problems(sizes=(16,), projections=((64, 64),))
    chosen = {
        (p["op"], p.get("sparse"), p.get("picked"), p.get("pattern")): (p, f)
        for p, f in reversed(some)
        if "k" in p
    }
    problem = {"op": "attention", "heads": 2, "m": 5, "n": 70, "d": 64, "normaliser": "sparsemax"}
    for half in (None, "float16"):
        func = attention(2, 5, 70, "sparsemax", half=half).prim_func()
        chosen["attention", half] = problem | {"half": half}, func
    return bundle.generate(list(chosen.values()), "sm_80")


def test_kernels_are_right_by_the_loader_of_the_bundle(driver, small, capsys):
    from cuda_emulator import library

    kernels, plan = small
    driver.be(library(kernels.source))
    device = Device(FAT_BINARY, str(driver.path))
    rows = bare.run(device, json.loads(json.dumps(plan)), check_only=False)
    device.close()
    assert len(rows) == len(plan) > 4
    assert all(row["right"] and row["seconds"] > 0 for row in rows), capsys.readouterr().out


def test_a_wrong_kernel_is_called_wrong(driver, small, capsys):
    from cuda_emulator import library

    kernels, plan = small
    driver.be(library(kernels.source))
    # The sum of a block too few.
    wrong = [
        problem | {"launches": [problem["launches"][0] | {"grid": [1, 1, 1]}]}
        for problem in plan
        if problem["op"] == "tensor_gemm" and problem["launches"][0]["grid"][0] > 1
    ]
    device = Device(FAT_BINARY, str(driver.path))
    rows = bare.run(device, wrong, check_only=True)
    device.close()
    assert rows and not any(row["right"] for row in rows)
    assert "WRONG" in capsys.readouterr().out


def test_a_driver_that_fails_says_why(driver):
    driver.be(load_result=209)
    with pytest.raises(DriverError, match="cuModuleLoadData: .*209"):
        Device(FAT_BINARY, str(driver.path))


def test_networks_by_the_runtime_of_the_bundle(driver, tmp_path, monkeypatch):
    import sparsec.runtime
    from cuda_emulator import library
    from sparsec.compiler.cuda import road

    from .conftest import NoMachineCode

    monkeypatch.setitem(sys.modules, "sparsec_runtime", sparsec.runtime)  # the same files
    from benchmarks.cuda import bare_networks, bundle_networks
    from benchmarks.cuda.networks import Entry

    made, build = [], road.build_kernels
    monkeypatch.setattr(road, "build_kernels", lambda *a: made.append(build(*a)) or made[-1])
    monkeypatch.setattr(road, "toolchain", NoMachineCode)
    entries = (Entry("small", "mlp", "fp32", "nm{n=2,m=4,min_size=256}"),)
    bundle_networks.write(tmp_path, "sm_80", entries, small=True)
    driver.be(library(made[0].source))
    (row,) = bare_networks.run(tmp_path, check_only=False)
    assert row["right"] and row["seconds"] > 0 and row["passes"] == entries[0].passes


def test_expectations_are_those_of_torch():
    import torch

    problem = {"op": "sparsemax", "shape": [4, 33]}
    (x,), shape, weight = inputs(problem)
    some, want = expected(problem, [x], weight)
    assert shape == (4, 33) and weight is None
    # The projection: positive parts of a shift, which sum to one.
    shift = (torch.from_numpy(x[some]).double() - torch.from_numpy(want))[torch.from_numpy(want) > 0]
    assert np.allclose(want.sum(-1), 1) and (want >= 0).all() and shift.isfinite().all()


def test_the_files_of_the_bundle_need_no_tvm(tmp_path):
    for package in bundle.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for source, to in bundle.FILES.items():
        (tmp_path / to).write_text((ROOT / source).read_text())
    assert all((ROOT / source / "__init__.py").exists() for source in bundle.COPIES)
    code = "import sys; sys.modules['tvm'] = None; import bare; print(bare.__doc__.splitlines()[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Checks and times"), done.stderr
