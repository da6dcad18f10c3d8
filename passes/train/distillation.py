"""Self-distillation: the sparse network learns from the dense one it was made from, without labels.

CAST (Huang et al., 2025) trains N:M networks so; here the loss is the relative squared error

    |s - t|^2 / |t|^2

summed over the outputs and, where ``features`` names layers, over their outputs too, which converges much
quicker.  Adam, a linear warm-up, then a cosine down to zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from sparsec.passes.base import PassError
from sparsec.passes.train.modules import sparse_weights
from sparsec.passes.train.outputs import answers, observed
from sparsec.passes.train.schedules import Fixed, Schedule

WARM_UP = 0.03
"""Share of the training in which the learning rate rises."""


def distil(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[tuple[torch.Tensor, ...]],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    rate: float = 5e-4,
    schedule: Schedule | None = None,
    features: str = "",
    autocast: torch.dtype | None = None,
    remember: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train the masked ``student``, in place, to compute what ``teacher`` computes; the loss of every step.

    Exactly one of ``steps`` and ``seconds`` (wall time) bounds it; ``batches`` are tuples of inputs, and are
    iterated again when they end (a DataLoader shuffles then).  Only the layers with a pattern and the vectors
    (biases, scales of normalisations) are trained.  ``schedule`` is one of :mod:`.schedules`; ``features``
    are globs, joined by ``|``, over names of modules; ``autocast`` (``torch.bfloat16``) halves the time on
    processors with such units.

    With ``remember`` the teacher runs once for each batch and its answers are kept in memory, in the type of
    ``autocast``: a quarter less to compute from the second round on.  The same batches then come back in
    another order.  PassError for a student without patterns or a bound that is missing.
    """
    if (steps is None) == (seconds is None):
        raise PassError("train: distil needs either steps or seconds")
    if (steps if seconds is None else seconds) <= 0:
        raise PassError(f"train: distil needs time to train, found steps={steps}, seconds={seconds}")
    layers = [layer for _, layer, *_ in sparse_weights(student)]
    if not layers:
        raise PassError("train: the student has no layer with a pattern; call sparsify first")
    trained = _trained(student, layers)
    optimizer = torch.optim.Adam(trained, rate, betas=(0.9, 0.98), fused=True)
    schedule = schedule or Fixed()
    losses: list[float] = []
    kept = autocast or trained[0].dtype if remember else None
    with observed(student, features, autocast) as pupil, observed(teacher, features, autocast) as dense:
        start = time.monotonic()
        for batch, wanted in answers(dense, batches, kept):
            done = len(losses) / steps if steps else (time.monotonic() - start) / seconds
            if done >= 1:
                break
            schedule(student, done)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (done + 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
            loss = sum(relative_error(s, t) for s, t in zip(pupil(batch), wanted, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                log(f"step {len(losses)}, {100 * done:.0f} %: loss {sum(losses[-50:]) / 50:.4f}")
    schedule(student, 1.0)
    return losses


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """``|found - wanted|^2 / |wanted|^2`` over all elements, in float32."""
    wanted = wanted.float()
    return (found.float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


def _trained(student: nn.Module, layers: list[nn.Module]) -> list[nn.Parameter]:
    chosen = {parameter for layer in layers for parameter in layer.parameters()}
    chosen |= {parameter for parameter in student.parameters() if parameter.ndim <= 1}
    for parameter in student.parameters():
        parameter.requires_grad_(parameter in chosen)
    return [parameter for parameter in student.parameters() if parameter in chosen]
