"""Models and contexts: what ``sparsec.load`` returns."""

import ctypes
import os
import statistics
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from . import arrays, snapshots
from .artifact import Artifact
from .errors import InputError, RunError, SparsecError
from .library import Code, Error, pointers, to_exception
from .manifest import TensorInfo
from .signature import public_key
from .workers import Workers

_CLOSED = "the context is closed; make another one with Model.context(), or load the model again"


def load(
    path: str | os.PathLike,
    *,
    threads: int | None = None,
    device: int | None = None,
    require_signature: bytes | str | os.PathLike | None = None,
    variant: str | None = None,
) -> "Model":
    """Load the artifact at ``path``.

    Every byte is checked before anything is executed.  ``threads``: how many threads work on one
    inference; None means the environment variable SPARSEC_NUM_THREADS or, without one, the CPUs
    that the affinity mask and the cgroup's quota leave to this process.  ``device``: the GPU to run on,
    counted from 0, which None means, too; for models that are made for GPUs.  ``require_signature``: an
    Ed25519 public key, as 32 bytes or the path of a PEM file, that must have signed the artifact.
    ``variant``: of an artifact with several (``sparsec compile --variants 2:4,1:4``) the one to take, such
    as ``"1:4"``; None means the first.

    Raises ArtifactError for damaged or unreadable bytes, FormatError for something that is not an
    artifact or is of a newer format, TargetError if this machine is not the artifact's target,
    SignatureError where a required signature is missing or wrong, and InputError for a wrong
    ``threads``, ``device`` or key.  All are SparsecError.
    """
    return Model(path, threads=threads, device=device, require_signature=require_signature, variant=variant)


class Model:
    """A loaded model: ``model(x)`` or ``model({"name": array})`` runs it once.

    Attributes: ``inputs``, ``outputs`` and ``states`` (tuples of TensorInfo: name, dtype, shape, dims),
    ``manifest`` (a dict, see docs/artifact-format.md), ``level`` (the CPU level in use, or "cuda-" and the
    host), ``device`` (the GPU's number, None on CPUs), ``path``, ``variant`` (the one in use, None if there
    are none) and ``variants`` (all of them, the default first).

    Calls of the model itself take turns.  For several at once give each thread its own
    ``model.context()``: contexts share code and weights, and the GIL is released while they run.
    ``model.submit(x)`` does that with threads of the model's own.

    What a run computes for a state, the next run of the same context reads; a context begins with zeros.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        threads: int | None = None,
        device: int | None = None,
        require_signature: bytes | str | os.PathLike | None = None,
        variant: str | None = None,
    ):
        key = None if require_signature is None else public_key(require_signature)
        artifact = Artifact(path, key, variant)
        manifest, library = artifact.manifest, artifact.library
        self.path = artifact.path
        self.variant: str | None = library.variant or None
        self.variants: tuple[str, ...] = tuple(
            dict.fromkeys(item.variant for item in manifest.libraries if item.variant)
        )
        self.manifest: Mapping = manifest.raw
        if self.variant:
            self.manifest = {**manifest.raw, **manifest.raw.get("variants", {}).get(self.variant, {})}
        self.inputs: tuple[TensorInfo, ...] = manifest.inputs
        self.outputs: tuple[TensorInfo, ...] = manifest.outputs
        self.states: tuple[TensorInfo, ...] = manifest.states
        self.level: str = library.level
        self._threads = threads
        if device is not None and not manifest.gpu:
            raise InputError(f"{self.path!r}: device={device!r}: the model runs on CPUs; compile it for cuda")
        if device is not None and (not isinstance(device, int) or isinstance(device, bool)):
            raise InputError(f"device must be a GPU's number or None, found {device!r}")
        self.device: int | None = (device or 0) if manifest.gpu else None
        try:
            weights = artifact.weights, library.weights_size
            self._code = Code(artifact.code, *weights, artifact, manifest, artifact.kernels)
        except SparsecError as e:
            raise type(e)(f"{self.path!r}: {e}") from None
        artifact.code = artifact.kernels = b""  # the library is a copy
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._default = self._made(threads)
        self._workers: Workers | None = None
        self._lock = threading.Lock()

    def context(self, threads: int | None = None) -> "Context":
        """A new context, to be used by one thread at a time.

        ``threads``: how many work on one inference of it; None means what ``load`` was given, else
        SPARSEC_NUM_THREADS, else 1: who makes contexts has threads of his own, and as many again
        from each context would fight for the CPUs.
        """
        if threads is None:
            threads = self._threads
        if threads is None and not os.environ.get("SPARSEC_NUM_THREADS"):
            threads = 1
        return self._made(threads)

    def _made(self, threads: int | None) -> "Context":
        if self._code.closed:
            raise RunError(f"{self.path!r} is closed; load it again")
        context = Context(self._code, self.inputs, self.outputs, self.states, threads, self.device)
        self._contexts.add(context)
        return context

    def __call__(self, *inputs, out: Mapping | None = None) -> dict[str, np.ndarray]:
        """Run once.  ``inputs``: one array per model input in order, or one mapping name -> array.

        Arrays (NumPy, or anything with ``__dlpack__``) must have exactly the input's dtype and
        shape; data aligned to 64 bytes are used in place, inputs of a MiB and more from 16 bytes on.  ``out``
        maps output names to arrays of the same kinds that receive the results; other outputs are new NumPy
        arrays.  Returns output name -> array, those of ``out`` as they were given.  A model on a GPU takes
        and fills arrays in its memory, too, in place.  Raises InputError or RunError.
        """
        return self._own()(*inputs, out=out)

    def submit(self, *inputs, out: Mapping | None = None) -> Future:
        """As a call, on a thread of the model's own; the result, or the error, is the future's.

        There are as many threads as ``load`` gives one inference, each with a context of its own, which
        are made by the first call.  What is passed must not be changed before the future is done.  A model
        with states raises InputError: its runs follow each other in one context.
        """
        if self.states:
            first = self.states[0].name
            raise InputError(
                f"a model with states ({first!r}) runs step by step: call it, or a context() of it"
            )
        with self._lock:
            if self._workers is None or self._workers.process != os.getpid():
                contexts = [self._made(1) for _ in range(self._default.threads)]
                self._workers = Workers(contexts)
            return self._workers.submit(*inputs, out=out)

    def profile(self, *inputs, repeats: int = 10) -> list[tuple[str, float]]:
        """The steps in the order of execution as (ONNX nodes, median seconds of ``repeats`` runs)."""
        return self._own().profile(*inputs, repeats=repeats)

    def reset(self) -> None:
        """Make every state zero, as in a new context."""
        self._own().reset()

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of the states, by name, as the next run will read them."""
        return self._own().snapshot()

    def restore(self, snapshot: Mapping) -> None:
        """Set the states to what ``snapshot`` has returned, or to other arrays of their dtypes and shapes.

        Raises InputError unless there is one for each state.
        """
        self._own().restore(snapshot)

    def _own(self) -> "Context":
        if self._default.process != os.getpid():  # a fork left the pool's threads behind
            self._default = self._made(self._threads)
        return self._default

    def close(self) -> None:
        """Free everything; contexts are closed too, after what they are running or was submitted."""
        with self._lock:
            workers = self._workers
        if workers is not None:
            workers.close()
        for context in list(self._contexts):
            context.close()
        self._code.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        ports = [
            ", ".join(f"{t.name}: {t.dtype}{list(t.shape)}" for t in side)
            for side in (self.inputs, self.outputs)
        ]
        return f"<sparsec model {self.path!r} ({ports[0]}) -> ({ports[1]})>"


class Context:
    """The memory and threads of one inference.  ``threads`` is how many work on it.

    Calls take turns, so that sharing a context between threads is slow, not wrong.
    """

    def __init__(
        self,
        code: Code,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        states: Sequence[TensorInfo],
        threads: int | None,
        device: int | None = None,
    ):
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise InputError(f"threads must be a positive integer or None, found {threads!r}")
        self._code, self._inputs, self._outputs, self._states = code, inputs, outputs, states
        self._module = code.module
        self._results = arrays.Recycler(outputs)
        self._handle = code.create(min(threads or 0, 2**31 - 1), device or 0)
        self._stream: int | None = code.gpu.stream(self._handle) if code.gpu else None
        self._lock = threading.Lock()
        self.process = os.getpid()
        self.threads: int = self._module.threads(self._handle)

    def __call__(self, *inputs, out: Mapping | None = None) -> dict[str, np.ndarray]:
        """As ``Model.__call__``."""
        return self._run(inputs, out, None)

    def profile(self, *inputs, repeats: int = 10) -> list[tuple[str, float]]:
        """As ``Model.profile``."""
        if repeats < 1:
            raise InputError(f"repeats must be at least 1, found {repeats}")
        if self._handle is None:
            raise RunError(_CLOSED)
        labels = self._code.labels()
        seconds = np.empty((repeats, max(1, len(labels))), np.float64)
        for row in seconds:
            self._run(inputs, None, row.ctypes.data)
        return [(label, statistics.median(seconds[:, i].tolist())) for i, label in enumerate(labels)]

    def _run(self, inputs: tuple, out: Mapping | None, seconds: int | None) -> dict[str, np.ndarray]:
        infos = self._inputs
        given, stream = arrays.named(inputs, infos), self._stream
        values = [arrays.as_array(v, i, stream) for v, i in zip(given, infos, strict=True)]
        taken = arrays.receivers(out, self._outputs, values, stream) if out else None
        results = self._results.take(taken) if taken else self._results.take()
        sources = pointers([arrays.address(a) for a in values])
        targets = pointers([arrays.address(a) for a in results.values()])
        error = Error()
        with self._lock:
            if self._handle is None:
                raise RunError(_CLOSED)
            failed = self._module.run(
                self._handle,
                ctypes.addressof(sources),
                ctypes.addressof(targets),
                seconds,
                ctypes.addressof(error),
            )
        if failed:
            raise to_exception(error)
        return {**results, **out} if out else results

    def reset(self) -> None:
        """As ``Model.reset``."""
        self._copy_states("restore", None, 0)

    def snapshot(self) -> dict[str, np.ndarray]:
        """As ``Model.snapshot``."""
        data = snapshots.room(self._states)
        self._copy_states("snapshot", data.ctypes.data, data.nbytes)
        return {name: view.copy() for name, view in snapshots.split(data, self._states).items()}

    def restore(self, snapshot: Mapping) -> None:
        """As ``Model.restore``."""
        data = snapshots.joined(snapshot, self._states)
        self._copy_states("restore", data.ctypes.data, data.nbytes)

    def _copy_states(self, what: str, address: int | None, size: int) -> None:
        """The module's ``snapshot`` or ``restore``; a library of ABI 1 has neither, and no states."""
        with self._lock:
            if self._handle is None:
                raise RunError(_CLOSED)
            error = Error()
            if self._states and getattr(self._module, what)(self._handle, address, size, ctypes.byref(error)):
                raise to_exception(error)

    def close(self) -> None:
        """Free the memory and end the threads."""
        with self._lock:
            self._free()

    def _free(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._code.destroy(handle)

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self._free()
