"""sparsec.schedules."""

if __name__ != "sparsec.schedules":
    raise ImportError("import sparsec.schedules, not schedules: one file under two names gives two classes")
