"""Read an ONNX file without trusting it: bytes -> ``onnx.ModelProto`` -> ``onnx_ir.Model``.

Nothing here calls onnx's checker or its loader; protobuf's parser and plain Python loops look at the
structure, so that what comes later may rely on it.
"""

import os
import stat
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from sparsec.compiler.ingest import structure
from sparsec.compiler.ingest.errors import IngestError, one_line, quoted
from sparsec.compiler.ingest.external import ExternalData

MAX_BYTES = 2**31 - 1  # protobuf's own limit for one message

# What people hand in by mistake: (offset, bytes that tell it, what it is, what to do).
_KNOWN = (
    (4, b"TFL3", "a TensorFlow Lite file", "convert it with tf2onnx: python -m tf2onnx.convert --tflite"),
    (4, b"ORTM", "an ONNX Runtime .ort file", "give the .onnx file it was made from"),
    (0, b"\x89HDF", "an HDF5 (Keras) file", "export it to ONNX with tf2onnx"),
    (0, b"PK\x03\x04", "a zip archive (a PyTorch, Keras or sparsec file?)", "give an .onnx file"),
    (0, b"\x80\x02", "a Python pickle (a PyTorch file?)", "export it with torch.onnx.export"),
    (0, b"\x1f\x8b", "a gzip file", "unpack it first"),
    (0, b"GGUF", "a GGUF file", "export the network to ONNX"),
    (0, b"\x7fELF", "a program or a library", "give an .onnx file"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "fetch it with: git lfs pull"),
    (8, b'{"', "a safetensors file: weights without a graph", "export the network with torch.onnx.export"),
    (0, b"<", "an XML or HTML file", "give an .onnx file"),
    (0, b"{", "a JSON file", "give an .onnx file"),
)


def load(path: str | os.PathLike) -> ir.Model:
    """The model at ``path``, structurally sound, with its external data mapped."""
    proto = parse(read(path), path)
    structure.check(proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # the reader meets foreign data; whatever it trips over is the model's fault
        raise IngestError(f"{quoted(str(path))} is not a sound ONNX model: {one_line(error)}") from error
    resolve_external(model, Path(path).parent)
    return model


def fault(path: str | os.PathLike) -> str | None:
    """What onnx's checker has against the model, in one line; None if nothing."""
    proto = parse(read(path), path)
    # The checker looks for external data by rules of its own; their tensors are not what is in question.
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=onnx.TensorProto.FLOAT, dims=[0]))
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, and bare C++ exceptions
        return one_line(error)
    return None


def read(path: str | os.PathLike) -> bytes:
    """The bytes of a regular file of a size that can be an ONNX model."""
    shown = quoted(str(path), 200)
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise IngestError(f"cannot read the model {shown}: {reason}") from None
    try:
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            inside = sorted(entry for entry in os.listdir(path) if entry.endswith(".onnx"))
            hint = f"give the file, for example {quoted(inside[0])} in it" if inside else "give an .onnx file"
            raise IngestError(f"{shown} is a directory; {hint}")
        if not stat.S_ISREG(info.st_mode):
            raise IngestError(f"{shown} is not a regular file; save the model to a file first")
        if info.st_size == 0:
            raise IngestError(f"{shown} is empty; was its export or download interrupted?")
        if info.st_size > MAX_BYTES:
            raise IngestError(
                f"{shown} has {info.st_size} bytes, an ONNX file at most {MAX_BYTES}; "
                "save the model with external data"
            )
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(info.st_size)
    finally:
        os.close(handle)


def parse(data: bytes, path: str | os.PathLike = "model") -> onnx.ModelProto:
    """Parse ``data``; what is not an ONNX model is named by what it looks like."""
    shown = quoted(str(path), 200)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
        if proto.HasField("graph"):
            return proto
        reason = "it holds no graph"
    except DecodeError:  # what was read up to there stays in ``proto``; it is of no use
        reason = "protobuf cannot parse it; it may be cut off"
    for offset, magic, what, todo in _KNOWN:
        if data[offset : offset + len(magic)] == magic:
            raise IngestError(f"{shown} is {what}, not an ONNX model; {todo}")
    raise IngestError(f"{shown} is not an ONNX model: {reason}")


def resolve_external(model: ir.Model, folder: Path) -> None:
    """Replace each external tensor of ``model`` by one that maps the checked bytes."""
    files = ExternalData(folder)

    def own(tensor):
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        entries = {"location": str(tensor.location)}
        if tensor.offset is not None:
            entries["offset"] = str(tensor.offset)
        if tensor.length is not None:
            entries["length"] = str(tensor.length)
        return files.tensor(tensor.name or "", tensor.dtype, tuple(tensor.shape.numpy()), entries)

    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = own(value.const_value)
    nodes = list(model.graph.all_nodes()) + [n for f in model.functions.values() for n in f.all_nodes()]
    for node in nodes:
        for key, attr in list(node.attributes.items()):
            if attr.is_ref():
                continue
            if attr.type == ir.AttributeType.TENSOR and isinstance(attr.value, ir.ExternalTensor):
                node.attributes[key] = ir.AttrTensor(key, own(attr.value))
            elif attr.type == ir.AttributeType.TENSORS:
                node.attributes[key] = ir.AttrTensors(key, [own(t) for t in attr.value])
