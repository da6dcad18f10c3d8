"""sparsec.compiler.ingest."""
