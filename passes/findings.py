"""What a pass decided about one node, as a value that can be stored, shown and tested."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Outcome = Literal["applied", "declined"]


@dataclass(frozen=True)
class Finding:
    """One decision of one pass.

    ``pass_name`` and ``node`` say who decided about what, ``outcome`` and ``reason`` what and why.
    ``before`` and ``after`` name the operators of the pattern ("Sub, Relu") and what stands there now
    ("ai.sparsec.ShiftedRelu"); a declined finding has the same text in both.
    """

    pass_name: str
    node: str
    outcome: Outcome
    reason: str
    before: str
    after: str

    def __post_init__(self) -> None:
        if self.outcome not in ("applied", "declined"):
            raise ValueError(f"Finding: outcome must be 'applied' or 'declined', got {self.outcome!r}")
        if not self.reason:
            raise ValueError(
                f"Finding: {self.pass_name} gave no reason for {self.node}; every decision has one"
            )

    @property
    def applied(self) -> bool:
        return self.outcome == "applied"

    def to_json(self) -> dict[str, str]:
        """A dict of plain strings, ready for ``json.dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Finding:
        """The inverse of :meth:`to_json`; ValueError when a key is missing, unknown or no string."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(f"Finding: keys must be {sorted(names)}, got {sorted(data)}")
        for key, value in data.items():
            if not isinstance(value, str):
                raise ValueError(f"Finding: {key} must be a string, got {type(value).__name__}")
        return cls(**data)
