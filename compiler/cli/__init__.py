"""sparsec.compiler.cli."""
