"""Heavy work in a process of its own, so that no model can take the command line down with it.

onnx's and TVM's native code may crash, hang or eat the memory when a model is malformed.  The parent
starts ``python -m sparsec.compiler.worker``, sends one request, reads progress and one result, and turns
whatever else happens into a named error.

The worker's messages are JSON lines on a pipe of their own; what libraries print goes to a log file,
which is kept only when something unexpected happened.

    {"progress": "importing", ...}                   a stage began
    {"result": {...}}                                done
    {"error": "text", "kind": ["module:Class", ...], "expected": true}
"""

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest.errors import one_line

TASKS: dict[str, str] = {
    "compile": "sparsec.compiler.cli.compile:work_on",
    "explain": "sparsec.compiler.cli.explain:analyse",
    "ingest": "sparsec.compiler.ingest.task:ingest_to_file",
    "inspect": "sparsec.compiler.cli.describe:model",
    "quantize": "sparsec.compiler.cli.quantize:transform",
    "sparsify": "sparsec.compiler.cli.sparsify:transform",
    "tune": "sparsec.compiler.cli.tune:work_on",
    "verify": "sparsec.compiler.cli.verify:compare",
}
"""Task name to ``module:function``; the function takes ``(request, progress)`` and returns a dict that
JSON can hold.  ``progress(stage, **facts)`` names what begins now."""

_GRACE = 5.0  # seconds that a worker may take to leave after its result, for the atexit hooks of libraries
_PR_SET_PDEATHSIG = 1
_GARBLED = {"error": "it sent a message that cannot be read", "kind": [], "expected": False, "memory": False}
_MEMORY_WORDS = (
    "bad_alloc",
    "Cannot allocate memory",
    "out of memory",
    "MemoryError",
    "LLVM ERROR: Allocation",
)


class WorkerError(CompileError):
    """The worker crashed, ran out of time or memory, or met a bug; ``log`` is a file with details or None."""

    def __init__(self, text: str, log: str | None = None):
        super().__init__(text)
        self.log = log


def run_in_worker(
    task: str,
    request: dict,
    *,
    timeout: float | None = None,
    memory: int | None = None,
    on_progress: Callable[[dict], None] | None = None,
) -> dict:
    """Run ``TASKS[task]`` on ``request`` in a new process and return its result.

    Args:
        timeout: seconds of wall-clock time, after which the worker is killed; None for no limit.
        memory: bytes of private memory (RLIMIT_DATA) that the worker may take; None for no limit.
            Mapped files, such as libraries and external weights, do not count.
        on_progress: called with each progress message, a dict with ``progress`` (the stage) and facts.

    Raises:
        SparsecError, PassError: the very error that the task raised, of the same class.
        WorkerError: crash, time-out, out of memory or bug; the text names the stage and the signal.
    """
    if task not in TASKS:
        raise WorkerError(f"no worker task {task!r}; there are {', '.join(sorted(TASKS))}")
    message = {
        "target": TASKS[task],
        "request": request,
        "memory": memory,
        "timeout": timeout,
        "parent": os.getpid(),
    }
    handle, log = tempfile.mkstemp(prefix="sparsec-worker-", suffix=".log")
    keep = False
    try:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "sparsec.compiler.worker", str(writer)],
                    stdin=subprocess.PIPE,
                    stdout=handle,
                    stderr=handle,
                    pass_fds=[writer],
                    start_new_session=True,  # a process group of its own: it is killed with its children
                    env=_environment(),
                )
            finally:
                os.close(writer)
            try:
                outcome, stage, status = _converse(process, pipe, message, timeout, on_progress)
            finally:
                _kill(process)
        if outcome is not None and "result" in outcome:
            return outcome["result"]
        error = _named_error(outcome, stage, status, timeout, memory, log)
        keep = isinstance(error, WorkerError) and error.log is not None
        raise error
    finally:
        os.close(handle)
        if not keep:
            Path(log).unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """This process's import path, and not the current folder, which may hold anybody's ``json.py``."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}


def _converse(process, pipe, message, timeout, on_progress):
    """Talk to the worker until it has said its last word; (last message, stage, exit status or "timeout")."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(message).encode())
        process.stdin.close()
    stage, rest = "start", b""
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return None, stage, "timeout"
        # The pipe may outlive the worker in a child of it, so its death is looked for as well; before the
        # last look into the pipe, so that no message is lost.
        dead = process.poll() is not None
        ready, _, _ = select.select([pipe], [], [], 0.5 if left is None else min(left, 0.5))
        chunk = pipe.read(1 << 16) if ready else None
        if chunk == b"" or (chunk is None and dead):
            return None, stage, process.wait()
        rest += chunk or b""
        *lines, rest = rest.split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                return dict(_GARBLED), stage, 0
            if "progress" not in said:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
                return said, stage, 0
            stage = said["progress"]
            if on_progress is not None:
                on_progress(said)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()


def _named_error(outcome, stage: str, status, timeout, memory, log: str) -> Exception:
    if outcome is not None and outcome["expected"]:
        return _same_kind(outcome)
    where = f"while the stage was {stage!r}"
    limit = "" if memory is None else f" (the limit is {memory >> 20} MiB)"
    tail = Path(log).read_text(errors="replace")[-4000:]
    starved = any(word in tail for word in _MEMORY_WORDS)
    if outcome is not None and outcome["memory"]:
        starved = True
    if status == "timeout":
        return WorkerError(
            f"the worker took longer than {timeout:g} s {where}; allow more time or a smaller model"
        )
    if starved or status == -signal.SIGKILL:
        return WorkerError(
            f"the worker ran out of memory {where}{limit}; allow more memory or a smaller model", log
        )
    if outcome is not None:
        return WorkerError(
            f"a bug in sparsec {where}: {outcome['error']}; please report it with the traceback in {log}", log
        )
    if status == -signal.SIGXCPU:
        return WorkerError(
            f"the worker used up its processor time {where}; allow more time or a smaller model"
        )
    if status < 0:
        name = signal.Signals(-status).name
        return WorkerError(
            f"the worker crashed with {name} {where}; the model is probably malformed: "
            f"check how it was exported; details in {log}",
            log,
        )
    return WorkerError(
        f"the worker left with status {status} {where} and said nothing; details in {log}", log
    )


def _same_kind(outcome: dict) -> Exception:
    """The error as the worker raised it; the nearest class that can be had."""
    for kind in outcome["kind"]:
        module, _, name = kind.partition(":")
        try:
            return getattr(importlib.import_module(module), name)(outcome["error"])
        except (ImportError, AttributeError, TypeError):
            continue
    return CompileError(outcome["error"])


# The worker's side.


def main(descriptor: int) -> None:
    """Serve one request from standard input; messages go to the pipe ``descriptor``."""
    message = json.loads(sys.stdin.buffer.read())
    _fence(message)
    pipe = os.fdopen(descriptor, "wb", buffering=0)

    def say(said: dict) -> None:
        data = json.dumps(said).encode() + b"\n"
        while data:
            data = data[pipe.write(data) :]

    def progress(stage: str, **facts) -> None:
        say({"progress": stage, **facts})

    try:
        module, _, function = message["target"].partition(":")
        say({"result": getattr(importlib.import_module(module), function)(message["request"], progress)})
    except Exception as error:
        traceback.print_exc()
        expected = _kinds(error)
        text = str(error) if expected else f"{type(error).__name__}: {one_line(error)}"
        starved = isinstance(error, MemoryError)
        say({"error": text, "kind": expected, "expected": bool(expected) and not starved, "memory": starved})


def _kinds(error: Exception) -> list[str]:
    """The classes of an expected error, nearest first; none for anything that is not meant for users."""
    ours = [
        f"{c.__module__}:{c.__qualname__}" for c in type(error).__mro__ if c.__module__.startswith("sparsec.")
    ]
    known = ("sparsec.runtime.errors:SparsecError", "sparsec.passes")
    return ours if any(kind == known[0] or kind.startswith(known[1]) for kind in ours) else []


def _fence(message: dict) -> None:
    """Die with the parent, keep to the limits, write no core dump, leave a stack behind in a crash."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != message["parent"]:
        os._exit(1)  # the parent died before the line above
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if message["memory"] is not None:
        # Not RLIMIT_AS: TVM, LLVM and torch map gigabytes that they never touch.
        _limit(resource.RLIMIT_DATA, message["memory"])
    if message["timeout"] is not None:
        # The parent keeps the time; this is for a parent that is stopped.
        _limit(resource.RLIMIT_CPU, int(message["timeout"] * (os.cpu_count() or 1)) + 2)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
