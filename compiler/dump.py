"""Numbered dumps of every stage, for whoever looks for the stage where a number went wrong."""

from pathlib import Path

import onnx_ir as ir
import tvm

from sparsec.compiler.errors import CompileError


class Dump:
    """Writes ``NN-name.onnx`` and ``NN-name.txt`` into a folder, or nothing where ``folder`` is None."""

    def __init__(self, folder: str | None):
        self.folder = Path(folder) if folder else None
        self.count = 0
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CompileError(f"--dump-dir '{folder}' cannot be made: {error.strerror}") from error

    def onnx(self, name: str, model: ir.Model) -> None:
        """A model that ONNX Runtime loads."""
        if self.folder:
            ir.save(model, self._path(name, "onnx"))

    def text(self, name: str, content: tvm.IRModule | str) -> None:
        if self.folder:
            text = content if isinstance(content, str) else content.script()
            self._path(name, "txt").write_text(text + "\n")

    def _path(self, name: str, suffix: str) -> Path:
        self.count += 1
        return self.folder / f"{self.count:02d}-{name}.{suffix}"
