"""sparsec.passes."""

if __name__ != "sparsec.passes":
    raise ImportError("import sparsec.passes, not passes: one file under two names gives two classes")
