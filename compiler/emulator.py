"""Models for other architectures, run here: a static executable under QEMU's user mode.

The executable is linked from the objects of the artifact's library, so what runs are the same instructions.
"""

import shutil
import subprocess
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sparsec.compiler import native
from sparsec.compiler.errors import CompileError
from sparsec.compiler.objects import Built
from sparsec.compiler.plan import Plan
from sparsec.runtime.cpu import LEVEL_ARCHITECTURE, architecture

NAMES = {"armv7": "arm"}
"""What QEMU calls an architecture, where that differs from the manifest's spelling."""
CPUS = {"neon": "cortex-a53", "rv64gcv": "rv64,v=true,vlen=128"}
"""The CPU to emulate for a level where QEMU's default has more features or lacks some; with the shortest
vectors."""


def emulator(level: str) -> list[str] | None:
    """QEMU for ``level``, where it is installed, as a command; None for this machine's own architecture."""
    machine = LEVEL_ARCHITECTURE[level]
    if machine == architecture():
        return None
    name = f"qemu-{NAMES.get(machine, machine)}"
    found = shutil.which(f"{name}-static") or shutil.which(name)
    return found and [found, *(["-cpu", CPUS[level]] if level in CPUS else [])]


def why_not(level: str) -> str:
    """Why a level that does not run here, and has no emulator, could not be run."""
    machine = LEVEL_ARCHITECTURE[level]
    if machine == architecture():
        return f"this CPU lacks the features of level {level}"
    missing = f"has no qemu-{NAMES.get(machine, machine)} (Debian: apt-get install qemu-user-static)"
    return f"this machine is {architecture()} and {missing}"


def runs(
    plans: Mapping[str, Plan], objects: Mapping[str, tuple[Built, bytes]], folder: Path
) -> dict[str, Callable]:
    """``{level: run}`` for the levels that have an emulator here; a run takes the inputs by name."""
    return {
        level: partial(run, plans[level], built, code, level, folder)
        for level, (built, code) in objects.items()
        if emulator(level)
    }


def remarks(levels: Iterable[str], done: Container[str]) -> dict:
    """What a receipt says of ``levels`` that were emulated, and why others are not ``done``."""
    emulated = [level for level in levels if level in done and emulator(level)]
    missing = {level: why_not(level) for level in levels if level not in done}
    return ({"emulated": emulated} if emulated else {}) | ({"not_run": missing} if missing else {})


def run(
    plan: Plan, built: Built, code: bytes, level: str, folder: Path, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of ``plan`` with the kernels ``code``; files go to ``folder``.

    Raises CompileError where the kernels cannot be linked, or the run ends with an error or a signal.
    """
    program, weights, inputs, outputs = (folder / f"{level}.{n}" for n in ("run", "weights", "in", "out"))
    native.link_runner(plan, [code], built.workspace_size, program, level)
    weights.write_bytes(plan.weights)
    given = [*plan.inputs, *(state.port for state in plan.states)]
    inputs.write_bytes(b"".join(np.ascontiguousarray(feeds[p.name], p.dtype).tobytes() for p in given))
    done = subprocess.run(
        [*emulator(level), program, weights, inputs, outputs], stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
        raise CompileError(f"the kernels for {level} failed under emulation: {words[-500:]}")
    data, found, at = outputs.read_bytes(), {}, 0
    left = [replace(state.port, name=state.output) for state in plan.states]
    for port in [*plan.outputs, *left]:
        values = np.frombuffer(data, port.dtype, int(np.prod(port.shape, dtype=np.int64)), at)
        found[port.name] = values.reshape(port.shape)
        at += values.nbytes
    return found
