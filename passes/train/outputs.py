"""What a network answers to a batch: its outputs and those of chosen layers, as a flat list of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn

from sparsec.passes.base import PassError

Batch = tuple[torch.Tensor, ...]


class Observed:
    """Calls ``module`` and returns its float outputs, then those of the layers that ``features`` name.

    ``features`` are globs, joined by ``|``, over names of modules; PassError where they name none.  The
    module runs in the type ``autocast``.  Its hooks are to be removed: :func:`observed`.
    """

    def __init__(self, module: nn.Module, features: str, autocast: torch.dtype | None):
        self.module, self.autocast, self.seen = module, autocast, []
        globs = [glob for glob in features.split("|") if glob]
        chosen = [
            part for name, part in module.named_modules() if any(fnmatchcase(name, glob) for glob in globs)
        ]
        if globs and not chosen:
            raise PassError(f"train: features={features} names no module")
        self.hooks = [
            part.register_forward_hook(lambda _, __, out: self.seen.extend(_tensors(out))) for part in chosen
        ]

    def __call__(self, batch: Batch) -> list[torch.Tensor]:
        self.seen.clear()  # here, because others may run the network in between
        with torch.autocast(batch[0].device.type, self.autocast, enabled=self.autocast is not None):
            outputs = list(_tensors(self.module(*batch)))
        return outputs + self.seen


@contextmanager
def observed(module: nn.Module, features: str, autocast: torch.dtype | None) -> Iterator[Observed]:
    """:class:`Observed` while the context lasts."""
    watch = Observed(module, features, autocast)
    try:
        yield watch
    finally:
        for hook in watch.hooks:
            hook.remove()


def answers(
    teacher: Observed, batches: Iterable[Batch], remember: torch.dtype | None
) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
    """Batches with what ``teacher`` answers, again and again.

    With ``remember`` each batch is answered once and its answers are kept in that type; from the second round
    on batches come in a new order each time.  PassError where there is no batch.
    """
    known: list[tuple[Batch, list[torch.Tensor]]] = []
    while not known:
        empty = True
        for batch in batches:
            empty = False
            with torch.no_grad():
                wanted = teacher(batch)
            if remember:
                # By identity, because a feature may be an output, too.
                once = {id(tensor): tensor.to(remember) for tensor in wanted}
                wanted = [once[id(tensor)] for tensor in wanted]
                known.append((batch, wanted))
            yield batch, wanted
        if empty:
            raise PassError("train: distil needs at least one batch; an iterator can be used up only once")
    order = torch.Generator().manual_seed(0)
    while True:
        for index in torch.randperm(len(known), generator=order).tolist():
            yield known[index]


def _tensors(output) -> Iterator[torch.Tensor]:
    """The float tensors of a module's output: a tensor, a sequence or a mapping."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    else:
        for part in output.values() if hasattr(output, "values") else output:
            yield from _tensors(part)
