"""What every pass is: a frozen dataclass whose fields are its options and whose run gives findings."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from sparsec.passes.findings import Finding


class PassError(ValueError):
    """A pass, an option or a model that cannot be served; one line that says what to do."""


@dataclass
class SparsecResult(ir.passes.PassResult):
    """onnx_ir's (model, modified) together with what was decided."""

    findings: tuple[Finding, ...] = ()


class SparsecPass(ir.passes.InPlacePass, abc.ABC):
    """Base of every pass.  A subclass is a frozen dataclass; its fields are its options.

    ``NAME`` is its spelling in a pipeline text and in findings, ``SUMMARY`` one line for the user and
    ``EXAMPLE`` a spelling that can be copied.  An option's field carries ``metadata={"help": ...}`` and,
    where only some values make sense, ``"choices"``.  ``__post_init__`` checks the options and raises
    PassError.  A pass is also an onnx_ir pass: ``pass_(model)`` returns a SparsecResult.
    """

    NAME: ClassVar[str]
    SUMMARY: ClassVar[str]
    EXAMPLE: ClassVar[str]

    @abc.abstractmethod
    def run(self, model: ir.Model) -> list[Finding]:
        """Change ``model`` in place; one finding for each candidate, taken or not, in graph order."""

    def call(self, model: ir.Model) -> SparsecResult:
        findings = tuple(self.run(model))
        return SparsecResult(model, any(f.applied for f in findings), findings)

    def applied(self, node: str, reason: str, before: str, after: str) -> Finding:
        return Finding(self.NAME, node, "applied", reason, before, after)

    def declined(self, node: str, reason: str, before: str) -> Finding:
        return Finding(self.NAME, node, "declined", reason, before, before)
