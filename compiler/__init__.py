"""The compiler: an ONNX file becomes one checked, deployable artifact."""

if __name__ != "sparsec.compiler":
    raise ImportError("import sparsec.compiler, not compiler: one file under two names gives two classes")


def compile_file(model, out, **options) -> dict:
    """Compile the ONNX file ``model`` to the artifact ``out`` and return the report.

    ``options`` are the fields of ``sparsec.compiler.request.CompileRequest``: ``target``, ``passes``,
    ``shapes``, ``dims``, ``sparsity``, ``calib``, ``choices``, ``verify``, ``dump_dir``, ``exportable``.
    Raises ``sparsec.runtime.SparsecError`` or ``sparsec.passes.PassError``; its one line says what to do.
    """
    from sparsec.compiler.pipeline import compile_model  # here, so that the command line starts without TVM
    from sparsec.compiler.request import CompileRequest

    return compile_model(CompileRequest(str(model), str(out), **options))
