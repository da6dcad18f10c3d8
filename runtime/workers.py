"""Inferences in the background: threads that each take a free context."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from .errors import RunError


class Workers:
    """As many threads as ``contexts``; each inference has one context for itself.

    ``process`` is the one that has the threads; a forked child has none.
    """

    def __init__(self, contexts: Sequence[Callable]):
        self.process = os.getpid()
        self._idle: SimpleQueue[Callable] = SimpleQueue()
        for context in contexts:
            self._idle.put(context)
        self._pool = ThreadPoolExecutor(len(contexts), "sparsec")

    def submit(self, *inputs, **options) -> Future:
        """``context(*inputs, **options)`` as a future; raises RunError after ``close``."""
        try:
            # Not a method of this object: a thread must not keep the pool alive that it belongs to.
            return self._pool.submit(_run, self._idle, inputs, options)
        except RuntimeError as e:
            raise RunError(f"the model takes no more work ({e}); load it again") from None

    def close(self) -> None:
        """Wait for what was submitted, then end the threads."""
        if self.process == os.getpid():
            self._pool.shutdown()


def _run(idle: SimpleQueue, inputs: tuple, options: dict):
    context = idle.get()  # never waits: there are as many contexts as threads
    try:
        return context(*inputs, **options)
    finally:
        idle.put(context)
