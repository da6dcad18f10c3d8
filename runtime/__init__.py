"""sparsec.runtime."""

if __name__ != "sparsec.runtime":
    raise ImportError("import sparsec.runtime, not runtime: one file under two names gives two classes")
