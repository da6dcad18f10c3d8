"""Calibration data, and the values of a model on it, one part of the graph at a time.

A `Replay` runs a model on all batches up to the values that are asked for, from values that it has kept: what
was computed is computed once, and of what is kept only what later parts still read stays. The kept values lie
in files of a folder, so the memory that this takes is that of one batch.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from sparsec.compiler.errors import CompileError
from sparsec.compiler.package import publish

BATCH = 16  # samples in a batch where the model leaves it open: enough for fast products, little memory
MASKS = ("attention_mask",)  # inputs that say by zeros which rows are padding, unless another is named


def read_batches(path: str, model: ir.Model, batch: int = BATCH) -> list[dict[str, np.ndarray]]:
    """The npz at `path` as feeds: arrays by input name, samples along the first axis, the odd rest cut off
    where the model fixes its batch. Raises CompileError where arrays and inputs do not agree."""
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise CompileError(f"calibration data '{path}' cannot be read as npz: {error}") from error
    fixed, sizes, found = None, {}, {}
    for value in model.graph.inputs:
        if value.name not in arrays:
            raise CompileError(
                f"calibration data '{path}' has no array '{value.name}'; "
                f"it holds {', '.join(arrays) or 'none'}"
            )
        array, dims = arrays[value.name], list(value.shape or ())
        agrees = array.ndim == len(dims) and all(
            not isinstance(d, int) or d == size for d, size in zip(dims[1:], array.shape[1:], strict=True)
        )
        if not dims or not agrees or array.dtype != value.dtype.numpy():
            wanted = [d if isinstance(d, int) else d.value for d in dims]
            raise CompileError(
                f"calibration data '{path}': '{value.name}' must be {value.dtype.numpy()}{wanted} "
                f"with samples along the first axis, found {array.dtype}{list(array.shape)}"
            )
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise CompileError(
                f"calibration data '{path}': '{value.name}' holds NaN or infinity; leave such samples out"
            )
        fixed = dims[0] if isinstance(dims[0], int) else fixed
        sizes[value.name], found[value.name] = len(array), array
    samples = min(sizes.values(), default=0)
    if len(set(sizes.values())) > 1:
        raise CompileError(
            f"calibration data '{path}': the arrays must have equally many samples, found {sizes}"
        )
    step = fixed or min(batch, max(samples, 1))
    stops = range(step, samples + 1, step) if fixed else range(step, samples + step, step)
    if not stops:
        raise CompileError(
            f"calibration data '{path}' has {samples} samples; a batch of the model takes {step}"
        )
    return [{name: array[stop - step : stop] for name, array in found.items()} for stop in stops]


class Replay:
    """The values of `model` on `feeds`; `folder` is emptied and used. The model may change between calls in
    what lies behind the values asked for so far."""

    def __init__(self, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], folder: Path):
        self.model, self.feeds, self.folder = model, feeds, folder
        self.kept: dict[str, np.dtype] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def __call__(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Batch by batch, the values of `names`."""
        inputs = {value.name for value in self.model.graph.inputs}
        fresh = [name for name in names if name not in inputs and name not in self.kept]
        session, dtypes = self._session(fresh, inputs) if fresh else None, {}
        for index, feed in enumerate(self.feeds):
            values = {name: feed[name] for name in names if name in inputs}
            values |= {name: self._load(index, name) for name in names if name in self.kept}
            if session is not None:
                reads = [value.name for value in session.get_inputs()]
                given = {n: feed[n] if n in inputs else self._load(index, n) for n in reads}
                made = dict(zip(fresh, session.run(fresh, given), strict=True))
                for name, array in made.items():
                    np.save(self._file(index, name), array)
                    dtypes[name] = array.dtype
                values |= made
            yield values
        self.kept |= dtypes
        self._forget(inputs)

    def _session(self, names: Sequence[str], inputs: set[str]) -> ort.InferenceSession:
        """Of the part of the graph between what is kept and `names`."""
        known = inputs | set(self.kept)
        start = sorted(self._border(names, known))
        graph = ir.convenience.extract(self.model.graph, start, list(names))
        for value in graph.inputs:
            if value.name in self.kept:  # ONNX Runtime asks for a type where the model may have none
                value.type = ir.TensorType(ir.DataType.from_numpy(self.kept[value.name]))
        part = ir.Model(
            graph,
            ir_version=self.model.ir_version,
            functions=[function.clone() for function in self.model.functions.values()],
        )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            data = ir.to_proto(part).SerializeToString()
            return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            line = str(error).strip().splitlines()[0]
            raise CompileError(f"ONNX Runtime cannot run the model for calibration: {line}") from error

    def _border(self, names: Sequence[str], known: set[str]) -> set[str]:
        """The known values that are reached first from `names`, going backwards."""
        made = {value.name: node for node in self.model.graph for value in node.outputs}
        border, seen, work = set(), set(), list(names)
        while work:
            name = work.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in known:
                border.add(name)
            elif name in made:
                node = made[name]
                work += [value.name for value in node.inputs if value is not None]
                work += [value.name for value in _captured(node)]
        return border

    def _forget(self, inputs: set[str]) -> None:
        """Drop what no output of the model needs any more."""
        live = self._border([value.name for value in self.model.graph.outputs], inputs | set(self.kept))
        for name in set(self.kept) - live:
            for index in range(len(self.feeds)):
                self._file(index, name).unlink()
            del self.kept[name]

    def _file(self, index: int, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}-{index}.npy"

    def _load(self, index: int, name: str) -> np.ndarray:
        return np.load(self._file(index, name))


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """What the subgraphs of `node` read from outside."""
    for attr in node.attributes.values():
        graphs = (
            [attr.value]
            if attr.type == ir.AttributeType.GRAPH
            else attr.value
            if attr.type == ir.AttributeType.GRAPHS
            else []
        )
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None and value.name)


class Folder:
    """Finished layers in a folder, for one model, calibration data and settings; another's is refused."""

    def __init__(self, path: Path, identity: Mapping[str, object]):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        note, said = path / "state.json", json.dumps(identity, indent=1, sort_keys=True)
        if not note.exists():
            publish(note, [said.encode()])
        elif note.read_text() != said:
            raise CompileError(
                f"the state in '{path}' is of another model, calibration data or options; "
                "give --state another folder, or remove this one"
            )

    def recall(self, name: str) -> tuple[np.ndarray, np.ndarray, list[dict]] | None:
        """The weight, bias and reports of the layer `name`, if it is finished."""
        try:
            with np.load(self._file(name), allow_pickle=False) as data:
                return data["weight"], data["bias"], json.loads(str(data["reports"]))
        except FileNotFoundError:
            return None

    def remember(self, name: str, weight: np.ndarray, bias: np.ndarray, reports: list[dict]) -> None:
        part = self._file(name).with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, weight=weight, bias=bias, reports=json.dumps(reports))
        part.rename(self._file(name))

    def _file(self, name: str) -> Path:
        return self.path / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"
