"""sparsec.compiler."""

if __name__ != "sparsec.compiler":
    raise ImportError("import sparsec.compiler, not compiler: one file under two names gives two classes")
