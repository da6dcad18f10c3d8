"""Models in Python: numbers, what may be passed, what is said when it may not, threads, life."""

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.runtime import ArtifactError, InputError, RunError, arrays


@pytest.fixture(scope="module")
def model(tiny):
    with sparsec.load(tiny.path) as model:
        yield model


def test_numbers(tiny, model):
    for seed in range(3):
        inputs = tiny.inputs(seed)
        tiny.check(model(inputs), inputs)
        tiny.check(model(inputs["x"], inputs["mask"]), inputs)


def test_results_are_new_arrays(tiny, model):
    first = model(tiny.inputs(0))["y"]
    before = first.copy()
    model(tiny.inputs(1))
    assert (first == before).all()


def test_description(tiny, model):
    assert [(t.name, t.dtype, t.shape, t.dims) for t in model.inputs] == [
        ("x", "float32", (16, 32), ("batch", 32)),
        ("mask", "bool", (16,), ("batch",)),
    ]
    assert [(t.name, t.shape) for t in model.outputs] == [("y", (16, 8)), ("kept", ())]
    assert model.manifest["source_sha256"] == "0" * 64
    assert model.level == "v2"
    assert "x: float32[16, 32]" in repr(model) and "kept: int64[]" in repr(model)


@pytest.mark.parametrize("shift", [0, 4, 60, 64])
def test_any_alignment(tiny, model, shift):
    inputs = tiny.inputs()
    raw = np.empty(16 * 32 * 4 + 128, np.uint8)
    start = -raw.ctypes.data % 64 + shift
    x = raw[start : start + 16 * 32 * 4].view("float32").reshape(16, 32)
    x[:] = inputs["x"]
    tiny.check(model(x, inputs["mask"]), inputs)


def test_not_contiguous(tiny, model):
    inputs = tiny.inputs()
    wide = np.zeros((16, 64), "float32")
    wide[:, ::2] = inputs["x"]
    tiny.check(model({"x": wide[:, ::2], "mask": inputs["mask"]}), inputs)
    tiny.check(model({"x": np.asfortranarray(inputs["x"]), "mask": inputs["mask"]}), inputs)


def test_dlpack_without_a_copy(tiny, model):
    torch = pytest.importorskip("torch")
    inputs = tiny.inputs()
    x = torch.from_numpy(inputs["x"])
    tiny.check(model(x, torch.from_numpy(inputs["mask"])), inputs)
    assert arrays.as_array(x, model.inputs[0]).ctypes.data == x.data_ptr()
    with pytest.raises(InputError, match=r"input 'x' cannot be read through __dlpack__: .*grad"):
        model(x.clone().requires_grad_(), inputs["mask"])


def test_results_go_to_torch_without_a_copy(tiny, model):
    torch = pytest.importorskip("torch")
    results = model(tiny.inputs())
    for array in results.values():
        assert torch.from_dlpack(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_results_in_the_caller_s_memory(tiny, model, kind, shift):
    """Whatever its alignment; the other output is a new array."""
    inputs = tiny.inputs(5)
    raw = np.zeros(16 * 8 + 32, np.float32)
    start = -raw.ctypes.data % 64 // 4 + shift
    array = raw[start : start + 16 * 8].reshape(16, 8)
    given = array if kind == "numpy" else pytest.importorskip("torch").from_numpy(array)
    results = model(inputs, out={"y": given})
    assert results["y"] is given and list(results) == ["y", "kept"]
    tiny.check({**results, "y": array}, inputs)
    assert not raw[:start].any() and not raw[start + 16 * 8 :].any()


def test_wrong_receivers(tiny, model):
    inputs, y = tiny.inputs(), np.zeros((16, 8), "float32")
    both = np.zeros(16 * 32 + 64, "float32")
    x = both[: 16 * 32].reshape(16, 32)
    readonly = y.copy()
    readonly.flags.writeable = False
    cases = [
        ([y], "out must map output names to arrays, found list"),
        ({"z": y}, "no output is called 'z': the model gives 'y', 'kept'"),
        ({"y": y[:8]}, r"output 'y': wanted float32\[16, 8\], found float32\[8, 8\]"),
        ({"y": 3}, "output 'y' must be a NumPy array or have __dlpack__, found int"),
        ({"y": np.zeros((8, 16), "float32").T}, "output 'y' must be contiguous and writable"),
        ({"y": readonly}, "output 'y' must be contiguous and writable"),
        ({"y": both[-128:].reshape(16, 8)}, "output 'y' overlaps an input or another output"),
    ]
    for out, text in cases:
        with pytest.raises(InputError, match=text):
            model({**inputs, "x": x}, out=out)


def test_outputs_are_aligned(tiny, model):
    assert all(a.ctypes.data % 64 == 0 for a in model(tiny.inputs()).values())


WRONG = {
    "name": (lambda i: ({**i, "z": 0},), "no input is called 'z': the model takes 'x', 'mask'"),
    "missing": (lambda i: ({"x": i["x"]},), r"input 'mask' is missing: wanted bool\[16\]"),
    "count": (lambda i: (i["x"],), r"the model takes 2 inputs \('x', 'mask'\), found 1"),
    "none": (lambda i: (), r"the model takes 2 inputs \('x', 'mask'\), found 0"),
    "shape": (
        lambda i: (i["x"][:8], i["mask"]),
        r"input 'x': wanted float32\[16, 32\], found float32\[8, 32\]",
    ),
    "dtype": (
        lambda i: (i["x"].astype("float64"), i["mask"]),
        r"input 'x': wanted float32\[16, 32\], found float64\[16, 32\]",
    ),
    "byte order": (
        lambda i: (i["x"].astype(">f4"), i["mask"]),
        r"input 'x': wanted float32\[16, 32\], found >f4",
    ),
    "list": (
        lambda i: (i["x"].tolist(), i["mask"]),
        "input 'x' must be a NumPy array or have __dlpack__, found list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(tiny, model, case):
    arguments, text = WRONG[case]
    with pytest.raises(InputError, match=text) as caught:
        model(*arguments(tiny.inputs()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_per_inference(tiny, model, threads):
    context = model.context(threads=threads)
    assert context.threads == threads
    for seed in range(200):
        inputs = tiny.inputs(seed)
        tiny.check(context(inputs), inputs)


def test_idle_threads_wake_up(tiny, model):
    """Pauses long enough for the pool to sleep between runs."""
    context = model.context(threads=2)
    for seed in range(20):
        threading.Event().wait(0.003)
        inputs = tiny.inputs(seed)
        tiny.check(context(inputs), inputs)


def test_contexts_run_side_by_side(tiny, model):
    failures = []

    def work(call, seed):
        try:
            for i in range(100):
                inputs = tiny.inputs(seed * 1000 + i)
                tiny.check(call(inputs), inputs)
        except Exception as e:
            failures.append(e)

    calls = [model.context(threads=2) for _ in range(3)] + [model, model]
    workers = [threading.Thread(target=work, args=(c, i)) for i, c in enumerate(calls)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_wrong_threads(tiny, model, threads):
    with pytest.raises(InputError, match="threads must be a positive integer or None, found "):
        model.context(threads=threads)
    with pytest.raises(InputError, match="threads must be a positive integer"):
        sparsec.load(tiny.path, threads=threads)


def test_too_many_threads(model):
    with pytest.raises(InputError, match="threads must be from 1 to 1024, or 0 for the default, found 5000"):
        model.context(threads=5000)


def test_thread_setting(tiny, model, monkeypatch):
    monkeypatch.setenv("SPARSEC_NUM_THREADS", "3")
    assert model.context().threads == 3
    assert model.context(threads=2).threads == 2
    monkeypatch.setenv("SPARSEC_NUM_THREADS", "many")
    with pytest.raises(InputError, match="SPARSEC_NUM_THREADS must be a number from 1 to 1024, found 'many'"):
        sparsec.load(tiny.path)
    monkeypatch.delenv("SPARSEC_NUM_THREADS")
    assert 1 <= model._default.threads <= len(os.sched_getaffinity(0))


def test_contexts_do_not_take_more_threads_than_their_callers(tiny, monkeypatch):
    monkeypatch.delenv("SPARSEC_NUM_THREADS", raising=False)
    tasks = "/proc/self/task"
    with sparsec.load(tiny.path) as model:
        before = len(os.listdir(tasks))
        contexts = [model.context() for _ in range(8)]
        assert {context.threads for context in contexts} == {1}
        assert len(os.listdir(tasks)) == before
    with sparsec.load(tiny.path, threads=2) as model:
        assert model.context().threads == 2


def test_affinity_limits_threads(tiny):
    code = f"import os, sparsec; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); \
print(sparsec.load({str(tiny.path)!r})._default.threads)"
    env = {k: v for k, v in os.environ.items() if k != "SPARSEC_NUM_THREADS"}
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True).stdout
        == b"1\n"
    )


def test_profile(tiny, model):
    steps = model.profile(tiny.inputs(), repeats=3)
    assert [label for label, _ in steps] == ["MatMul_0, Exp_1", 'a "strange"\n name ??/ é', "ReduceSum_2"]
    assert all(0 < seconds < 1 for _, seconds in steps)
    with pytest.raises(InputError, match="repeats must be at least 1, found 0"):
        model.profile(tiny.inputs(), repeats=0)


def test_closed(tiny):
    model = sparsec.load(tiny.path)
    context = model.context()
    model.close()
    model.close()
    for call in (model, context, model.profile, context.profile):
        with pytest.raises(RunError, match="the context is closed; make another one"):
            call(tiny.inputs())
    with pytest.raises(RunError, match=r"tiny.sparsec' is closed; load it again"):
        model.context()


def test_context_outlives_model(tiny):
    context = sparsec.load(tiny.path).context(threads=2)
    inputs = tiny.inputs()
    tiny.check(context(inputs), inputs)


CYCLES = """
import gc, os, sys, sparsec
for i in range(40):  # the collector finalises in the order of creation, or the other way round
    model = sparsec.load(sys.argv[1], threads=2)
    cycle = [[], model]
    context = model.context()
    cycle[0].append(cycle)
    cycle.insert(i % 3, context)
    context.cycle = context._code.cycle = cycle
    model.cycle = cycle
    del cycle, context, model
    gc.collect()
print(sum("sparsec-model" in line for line in open("/proc/self/maps")))
"""


def test_garbage_in_cycles(tiny):
    """A library finalised before its contexts stays loaded until they are gone."""
    run = subprocess.run([sys.executable, "-c", CYCLES, tiny.path], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr


def test_nothing_is_left_behind(tiny):
    def resources():
        maps = Path("/proc/self/maps").read_text().count("sparsec")
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps

    before = resources()
    for i in range(20):
        model = sparsec.load(tiny.path, threads=2)
        model(tiny.inputs())
        if i % 2:
            model.close()
        del model
    assert resources() == before


def test_models_do_not_mix(tiny, tmp_path):
    """The dynamic linker knows libraries by path, and descriptors are used again."""
    from sparsec.compiler.package import write_artifact

    for i in range(4):
        b = np.full(8, i, "float32")
        path = tmp_path / f"{i}.sparsec"
        write_artifact(path, tiny.manifest, {**tiny.members, "weights.bin": tiny.w.tobytes() + b.tobytes()})
        model = sparsec.load(path)
        inputs = tiny.inputs()
        difference = model(inputs)["y"] - (tiny.expected(inputs)["y"] - tiny.b)
        assert np.abs(difference - i).max() < 1e-4
        if i % 2:
            model.close()


def _in_child(model, inputs, queue):
    queue.put(model(inputs)["y"])


def test_fork(tiny):
    """A forked child has no threads of the pool: the model makes itself a new context there."""
    model = sparsec.load(tiny.path, threads=2)
    inputs = tiny.inputs()
    wanted = model(inputs)["y"]
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_in_child, args=(model, inputs, queue))
    child.start()
    assert (queue.get(timeout=60) == wanted).all()
    child.join()
    context = model.context(threads=2)
    if not (pid := os.fork()):
        try:
            context(inputs)
        except RunError as e:
            os._exit(0 if "was made before fork" in str(e) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("name", ["with space.sparsec", "with\nnewline.sparsec", "ümlaut'\".sparsec"])
def test_file_names(tiny, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(tiny.path.read_bytes())
    with sparsec.load(path) as model:
        tiny.check(model(tiny.inputs()), tiny.inputs())
    path.write_bytes(b"PK\3\4")
    with pytest.raises(ArtifactError) as caught:
        sparsec.load(path)
    assert "\n" not in str(caught.value)


def test_import_is_quick_and_alone():
    code = "import numpy, sys, time; t = time.perf_counter(); import sparsec.runtime; \
print(time.perf_counter() - t, [m for m in ('tvm', 'onnx', 'onnx_ir', 'click') if m in sys.modules])"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, modules = min(r.stdout.split(" ", 1) for r in runs)
    assert modules == "[]\n"
    assert float(seconds) < 0.15


def test_load_is_quick(tiny, tmp_path):
    """100 MB: under 10 ms beyond the time that SHA-256 takes."""
    import hashlib
    import time

    from sparsec.compiler.package import write_artifact

    extra = os.urandom(1 << 20) * 100
    path = tmp_path / "large.sparsec"
    write_artifact(path, tiny.manifest, {**tiny.members, "notes.bin": extra})
    loads, hashes = [], []
    for _ in range(5):
        start = time.perf_counter()
        hashlib.sha256(extra)
        hashes.append(time.perf_counter() - start)
        start = time.perf_counter()
        sparsec.load(path, threads=1).close()
        loads.append(time.perf_counter() - start)
    assert min(loads) < 1.3 * min(hashes) + 0.010


# In the background -------------------------------------------------------------------------------------


def test_submitted(tiny):
    """Several at once, each with a context of its own, beside calls of the model itself."""
    with sparsec.load(tiny.path, threads=3) as model:
        inputs = [tiny.inputs(seed) for seed in range(60)]
        futures = [model.submit(i) for i in inputs] + [model.submit(i["x"], i["mask"]) for i in inputs]
        tiny.check(model(inputs[0]), inputs[0])
        for future, given in zip(futures, inputs * 2, strict=True):
            tiny.check(future.result(60), given)
        y = np.zeros((16, 8), "float32")
        results = model.submit(inputs[7], out={"y": y}).result(60)
        assert results["y"] is y
        tiny.check(results, inputs[7])
        assert len(model._contexts) == 1 + 3


def test_submitted_from_a_coroutine(tiny):
    async def main():
        with sparsec.load(tiny.path, threads=2) as model:
            inputs = [tiny.inputs(seed) for seed in range(8)]
            results = await asyncio.gather(*(asyncio.wrap_future(model.submit(i)) for i in inputs))
            for result, given in zip(results, inputs, strict=True):
                tiny.check(result, given)

    asyncio.run(main())


def test_errors_of_what_was_submitted(tiny):
    with sparsec.load(tiny.path, threads=1) as model:
        with pytest.raises(InputError, match=r"the model takes 2 inputs"):
            model.submit().result(60)
        tiny.check(model.submit(tiny.inputs()).result(60), tiny.inputs())
        last = [model.submit(tiny.inputs(seed)) for seed in range(20)]
    assert all(future.done() for future in last)
    tiny.check(last[-1].result(), tiny.inputs(19))
    with pytest.raises(RunError, match=r"the model takes no more work \(.*shutdown\); load it again"):
        model.submit(tiny.inputs())
    fresh = sparsec.load(tiny.path)
    fresh.close()
    with pytest.raises(RunError, match="is closed; load it again"):
        fresh.submit(tiny.inputs())


def test_a_model_with_workers_leaves_nothing_behind(tiny):
    before = len(os.listdir("/proc/self/task"))
    for _ in range(5):
        model = sparsec.load(tiny.path, threads=2)
        future = model.submit(tiny.inputs())
        del model
        tiny.check(future.result(60), tiny.inputs())
    gc.collect()
    for _ in range(600):  # threads end after their pool
        if len(os.listdir("/proc/self/task")) == before:
            return
        threading.Event().wait(0.01)
    raise AssertionError("threads are left")


def _submit_in_child(model, inputs, queue):
    queue.put(model.submit(inputs).result(60)["y"])


def test_submit_after_fork(tiny):
    model = sparsec.load(tiny.path, threads=2)
    inputs = tiny.inputs()
    wanted = model.submit(inputs).result(60)["y"]
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_submit_in_child, args=(model, inputs, queue))
    child.start()
    assert (queue.get(timeout=60) == wanted).all()
    child.join()
    model.close()
