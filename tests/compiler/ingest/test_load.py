"""What people hand to the compiler by mistake is named by what it is."""

import os
import zipfile

import pytest

from sparsec.compiler.ingest import IngestError, ingest
from sparsec.compiler.ingest.load import MAX_BYTES, read

RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"


def message(path) -> str:
    with pytest.raises(IngestError) as caught:
        ingest(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path):
    assert "cannot read the model" in message(tmp_path / "none.onnx")
    assert "No such file" in message(tmp_path / "none.onnx")
    assert "cannot read the model" in message("a\0b")


def test_directory_names_a_model_in_it(tmp_path):
    assert "is a directory; give an .onnx file" in message(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert "is a directory; give the file, for example 'net.onnx'" in message(tmp_path)


def test_empty_file_pipe_and_unreadable(tmp_path):
    (tmp_path / "empty.onnx").touch()
    assert "is empty" in message(tmp_path / "empty.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "is not a regular file" in message(tmp_path / "pipe.onnx")


def test_file_too_big_for_protobuf(tmp_path):
    path = tmp_path / "big.onnx"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(IngestError, match="at most 2147483647; save the model with external data"):
        read(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite file"),
        (b"\x1c\0\0\0ORTM" + bytes(40), "an ONNX Runtime .ort file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 (Keras) file"),
        (b"\x80\x02}q\0.", "a Python pickle"),
        (b"\x1f\x8b\x08\0" + bytes(20), "a gzip file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x7fELF\x02\x01\x01", "a program or a library"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b'\x40\0\0\0\0\0\0\0{"w":{"dtype":"F32"}}', "a safetensors file"),
        (b"<html><body>404</body></html>", "an XML or HTML file"),
        (b'{"model": 1}', "a JSON file"),
        (b"hello, world\n", "is not an ONNX model"),
        (b"\xff" * 64, "is not an ONNX model"),
    ],
)
def test_other_files_are_named(save, data, what):
    assert what in message(save(data))


def test_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    assert "a zip archive (a PyTorch, Keras or sparsec file?)" in message(tmp_path / "m.pt")


def test_truncated_model(save, text_model):
    data = text_model(RELU).SerializeToString()
    assert "it may be cut off" in message(save(data[:-3]))


def test_odd_file_names(save, text_model):
    for name in ("with space.onnx", "línea\nnueva.onnx", "model", "-o.onnx"):
        assert len(ingest(save(text_model(RELU), name)).graph) == 1
    assert "\\n" in message(save(b"", "two\nlines.onnx"))
