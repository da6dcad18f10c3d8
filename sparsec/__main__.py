"""``python -m sparsec`` is the command line."""

from sparsec.compiler.cli import main

if __name__ == "__main__":
    main(prog_name="sparsec")
