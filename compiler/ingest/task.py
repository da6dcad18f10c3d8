"""Ingest as a task of ``sparsec.compiler.worker``."""

import onnx_ir as ir

from sparsec.compiler.ingest import ingest


def ingest_to_file(request: dict, progress) -> dict:
    """Ingest ``request["path"]`` and save the result as ONNX at ``request["out"]``.

    ``shapes`` (name to list of sizes) and ``dims`` may be given.  Weights go to ``out`` + ``.data``, so
    there is no limit of 2 GiB.  Returns ``{"notes": [...], "nodes": N}``.
    """
    notes: list[str] = []
    progress("ingest")
    shapes = {name: tuple(sizes) for name, sizes in request.get("shapes", {}).items()}
    model = ingest(request["path"], shapes, request.get("dims", {}), log=notes.append)
    progress("save")
    name = request["out"].rpartition("/")[2]
    ir.save(model, request["out"], external_data=f"{name}.data")
    return {"notes": notes, "nodes": len(model.graph)}
