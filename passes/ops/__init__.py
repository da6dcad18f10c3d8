"""sparsec.passes.ops."""
