"""Whatever happens in the worker, the caller gets a result or a named error."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sparsec.compiler import worker
from sparsec.compiler.ingest import IngestError
from sparsec.compiler.worker import WorkerError, run_in_worker

TASKS = textwrap.dedent(
    """
    import ctypes, os, signal, subprocess, sys, time

    def echo(request, progress):
        progress("one", share=0.5)
        print("noise on stdout")
        progress("two")
        return {"got": request, "path": sys.path[:1], "cwd_first": sys.path[0] == ""}

    def crash(request, progress):
        progress("parsing")
        os.kill(os.getpid(), getattr(signal, request["signal"]))
        time.sleep(60)

    def segfault(request, progress):
        progress("parsing")
        ctypes.string_at(0)

    def hang(request, progress):
        progress("inference")
        child = subprocess.Popen(["sleep", "600"])
        progress("waiting", pid=os.getpid(), child=child.pid)
        time.sleep(600)

    def spin(request, progress):
        progress("counting")
        while True:
            pass

    def eat(request, progress):
        progress("eating")
        hoard = []
        while True:
            hoard.append(bytearray(64 << 20))

    def quit(request, progress):
        progress("leaving")
        os._exit(7)

    def bug(request, progress):
        progress("dividing")
        return {"x": 1 / 0}

    def expected(request, progress):
        from sparsec.compiler.ingest import IngestError
        raise IngestError("the model is odd; export it again")

    def wrong_input(request, progress):
        from sparsec.runtime.errors import InputError
        raise InputError("input 'x' is missing")

    def refused_pass(request, progress):
        from sparsec.passes import PassError
        raise PassError("no pass 'nn'; did you mean 'nm'?")

    def atexit_crash(request, progress):
        import atexit
        atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))
        return {"ok": True}

    def garbled(request, progress):
        os.write(int(sys.argv[1]), b"{not json" + bytes([10]))
        time.sleep(60)

    def large(request, progress):
        return {"text": request["text"]}
    """
)


@pytest.fixture(autouse=True)
def tasks(tmp_path, monkeypatch):
    """The tasks above under their names; the worker finds the module by the import path it is given."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "worker_test_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    names = [line.split()[1].split("(")[0] for line in TASKS.splitlines() if line.startswith("def ")]
    monkeypatch.setattr(worker, "TASKS", {name: f"worker_test_tasks:{name}" for name in names})


def logs(tmp_path) -> list:
    return list(tmp_path.glob("sparsec-worker-*.log"))


def test_result_and_progress(tmp_path):
    seen = []
    result = run_in_worker("echo", {"a": [1, "ü\ud800"]}, on_progress=seen.append)
    assert result["got"] == {"a": [1, "ü\ud800"]} and not result["cwd_first"]
    assert seen == [{"progress": "one", "share": 0.5}, {"progress": "two"}]
    assert not logs(tmp_path)


def test_large_messages_both_ways():
    text = "x" * 3_000_000
    assert run_in_worker("large", {"text": text})["text"] == text


def test_a_module_of_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert run_in_worker("large", {"text": "ok"}) == {"text": "ok"}


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL"])
def test_a_crash_is_named(tmp_path, name):
    with pytest.raises(WorkerError) as caught:
        run_in_worker("crash", {"signal": name})
    text = str(caught.value)
    assert f"the worker crashed with {name} while the stage was 'parsing'" in text
    assert "the model is probably malformed" in text and "\n" not in text
    assert caught.value.log in text and os.path.exists(caught.value.log)


def test_a_native_crash_leaves_a_stack(tmp_path):
    with pytest.raises(WorkerError, match="SIGSEGV") as caught:
        run_in_worker("segfault", {})
    with open(caught.value.log) as log:
        assert "in segfault" in log.read()


def test_killed_by_the_system_means_memory():
    with pytest.raises(
        WorkerError, match="the worker ran out of memory while the stage was 'parsing'; allow more"
    ):
        run_in_worker("crash", {"signal": "SIGKILL"})


def test_memory_limit():
    with pytest.raises(
        WorkerError, match=r"ran out of memory while the stage was 'eating' \(the limit is 512 MiB\)"
    ):
        run_in_worker("eat", {}, memory=512 << 20, timeout=60)


def test_timeout_kills_the_children_too(tmp_path):
    seen = []
    start = time.monotonic()
    with pytest.raises(
        WorkerError, match="took longer than 2 s while the stage was 'waiting'; allow more time"
    ):
        run_in_worker("hang", {}, timeout=2, on_progress=seen.append)
    assert time.monotonic() - start < 10
    assert gone(seen[-1]["pid"]) and gone(seen[-1]["child"])
    assert not logs(tmp_path)


def test_a_worker_that_dies_without_a_word():
    with pytest.raises(
        WorkerError, match="left with status 7 while the stage was 'leaving' and said nothing"
    ):
        run_in_worker("quit", {})


def test_a_bug_says_so_and_keeps_the_traceback():
    with pytest.raises(WorkerError) as caught:
        run_in_worker("bug", {})
    text = str(caught.value)
    assert "a bug in sparsec while the stage was 'dividing': ZeroDivisionError: division by zero" in text
    assert caught.value.log in text
    with open(caught.value.log) as log:
        assert "in bug" in log.read()


def test_expected_errors_arrive_as_they_are(tmp_path):
    from sparsec.passes import PassError
    from sparsec.runtime.errors import InputError

    for task, kind, text in (
        ("expected", IngestError, "the model is odd; export it again"),
        ("wrong_input", InputError, "input 'x' is missing"),
        ("refused_pass", PassError, "no pass 'nn'; did you mean 'nm'?"),
    ):
        with pytest.raises(kind) as caught:
            run_in_worker(task, {})
        assert type(caught.value) is kind and str(caught.value) == text
    assert not logs(tmp_path)


def test_a_crash_after_the_result_does_not_matter():
    assert run_in_worker("atexit_crash", {}) == {"ok": True}


def test_a_message_that_cannot_be_read():
    with pytest.raises(
        WorkerError, match="stage was 'start': it sent a message that cannot be read; please report"
    ):
        run_in_worker("garbled", {})


def test_unknown_task():
    with pytest.raises(WorkerError, match="no worker task 'nope'; there are atexit_crash, bug"):
        run_in_worker("nope", {})


def test_an_error_in_the_callback_kills_the_worker():
    seen = []

    def stop(message):
        seen.append(message)
        if "pid" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_worker("hang", {}, on_progress=stop)
    assert gone(seen[-1]["pid"]) and gone(seen[-1]["child"])


PARENT = """
from sparsec.compiler import worker
worker.TASKS = {"hang": "worker_test_tasks:hang"}
worker.run_in_worker("hang", {}, on_progress=lambda m: print(m.get("pid", ""), flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_worker_dies_with_its_parent(how):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    pid = None
    for line in parent.stdout:
        if line.strip():
            pid = int(line)
            break
    parent.send_signal(how)
    assert parent.wait(10) != 0
    parent.stdout.close()
    assert gone(pid)


def gone(pid: int) -> bool:
    """Whether the process ended (a zombie counts); it gets two seconds to do so."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_ingest_as_a_task(tmp_path, monkeypatch, ort_run):
    import numpy as np
    import onnx

    monkeypatch.undo()
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    request = {"path": str(tmp_path / "m.onnx"), "out": str(tmp_path / "o.onnx"), "shapes": {"x": [3, 4]}}
    assert run_in_worker("ingest", request, timeout=60, memory=4 << 30) == {"notes": [], "nodes": 1}
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    assert np.array_equal(ort_run(tmp_path / "o.onnx", {"x": x})["y"], np.maximum(x, 0))
    with pytest.raises(IngestError, match="--shape q: the model has no input of that name"):
        run_in_worker("ingest", request | {"shapes": {"q": [1]}})
