"""The candidates of a layer: which kernel, cut into which tiles."""

import dataclasses
from dataclasses import dataclass

from sparsec.schedules.contraction_rule import ranked_plans
from sparsec.schedules.layout import DENSE
from sparsec.schedules.target import Cpu

#: A tile that the count of loads and products puts further behind the best is not measured.
WORTH_MEASURING = 1.3


@dataclass(frozen=True)
class Candidate:
    """``kernel`` is "sparse" or "dense"; its tiles span ``panels``, 0 for as many as counting says."""

    kernel: str
    panels: int = 0

    def __str__(self) -> str:
        return f"{self.kernel}/{self.panels}" if self.panels else self.kernel

    @classmethod
    def parse(cls, text: str) -> "Candidate":
        kernel, _, panels = text.partition("/")
        return cls(kernel, int(panels or 0))

    def spec(self, layer):
        """The contraction that runs: the layer's own, or without its pattern."""
        return (
            dataclasses.replace(layer, pattern=DENSE)
            if self.kernel == "dense" and has_pattern(layer)
            else layer
        )


def has_pattern(layer) -> bool:
    return getattr(layer, "pattern", DENSE) != DENSE


def kernels(layer) -> list[Candidate]:
    """Dense and, where the weight has a pattern, sparse; tiles by counting."""
    return [Candidate("dense"), *([Candidate("sparse")] if has_pattern(layer) else [])]


def with_tiles(layer, cpu: Cpu) -> list[Candidate]:
    """``kernels``, each followed by the other tiles that come near the counted best, in that order."""
    found = []
    for kernel in kernels(layer):
        plans = ranked_plans(cpu, kernel.spec(layer))
        others = [plan for cost, plan in plans[1:] if cost <= plans[0][0] * WORTH_MEASURING]
        found += [kernel, *(Candidate(kernel.kernel, plan.panels) for plan in others)]
    return found
