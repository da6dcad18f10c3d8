"""The text spelling of a pipeline: ``nm{n=2,m=4},sparsemax,threshold{kind=soft,tau=0.1}``.

Grammar: ``pass ("," pass)*`` with ``pass = name ["{" key "=" value ("," key "=" value)* "}"]``.  A value is
an integer, a float, ``true``/``false`` or a word; text with other characters is written as a JSON string.
What is printed parses back to equal passes; options at their default are not printed.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields

from sparsec.passes.base import PassError, SparsecPass

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([{},=])|([^\s{},="]+))')
_WORD = re.compile(r"[^\s{},=\"]+")


def parse(text: str, known: Mapping[str, type[SparsecPass]], always: Sequence[str] = ()) -> list[SparsecPass]:
    """The passes that ``text`` spells, in order; an empty text is an empty pipeline.

    ``always`` names passes that run anyway, so that naming one can be answered better than "unknown".

    Raises PassError on bad syntax and on an unknown or wrong pass, option or value, naming what is known.
    """
    tokens = _tokens(text)
    passes: list[SparsecPass] = []
    at = 0
    while at < len(tokens):
        name, at = _take_word(tokens, at, text, "a pass name")
        if name in always:
            raise PassError(f"{name} always runs and takes no options; leave it out of the pipeline")
        options: dict[str, str] = {}
        if at < len(tokens) and tokens[at] == "{":
            at += 1
            while at < len(tokens) and tokens[at] != "}":
                key, at = _take_word(tokens, at, text, f"an option of {name}")
                at = _take(tokens, at, "=", text, f"after {name}'s option {key}")
                value, at = _take_word(tokens, at, text, f"the value of {name}'s option {key}")
                if key in options:
                    raise PassError(f"{name}: option {key} is given twice; give it once")
                options[key] = value
                if at < len(tokens) and tokens[at] == "}":
                    break
                at = _take(tokens, at, ",", text, f"or '}}' after {key}={value}")
            at = _take(tokens, at, "}", text, f"at the end of {name}'s options")
        passes.append(_build(name, options, known))
        if at < len(tokens):
            at = _take(tokens, at, ",", text, f"after {name}")
            if at == len(tokens):
                raise PassError(f"pipeline {text!r} ends with ','; name one more pass or drop the comma")
    return passes


def unparse(passes: Sequence[SparsecPass]) -> str:
    """The text that parses back to ``passes``."""
    return ",".join(spell(p) for p in passes)


def spell(pass_: SparsecPass) -> str:
    """One pass as text, without the options that are at their default."""
    given = [(f.name, getattr(pass_, f.name)) for f in fields(pass_)]
    shown = [f"{k}={_print(v)}" for (k, v), f in zip(given, fields(pass_), strict=True) if v != f.default]
    return pass_.NAME + ("{" + ",".join(shown) + "}" if shown else "")


def suggest(wrong: str, known: Sequence[str]) -> str:
    """``" Did you mean 'x'?"`` when something close is known, else nothing."""
    close = difflib.get_close_matches(wrong, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _tokens(text: str) -> list[str]:
    out, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise PassError(f"pipeline {text!r}: cannot read {text[at:].strip()!r}; a string must be closed")
        out.append(match.group(1) or match.group(2) or match.group(3))
        at = match.end()
    return out


def _take(tokens: list[str], at: int, wanted: str, text: str, where: str) -> int:
    found = tokens[at] if at < len(tokens) else "the end"
    if found != wanted:
        raise PassError(f"pipeline {text!r}: expected {wanted!r} {where}, found {found!r}")
    return at + 1


def _take_word(tokens: list[str], at: int, text: str, what: str) -> tuple[str, int]:
    found = tokens[at] if at < len(tokens) else "the end"
    if at >= len(tokens) or found in "{},=":
        raise PassError(f"pipeline {text!r}: expected {what}, found {found!r}")
    if found.startswith('"'):
        try:
            found = json.loads(found)
        except json.JSONDecodeError as error:
            raise PassError(f"pipeline {text!r}: {found} is no JSON string: {error.msg}") from error
    return found, at + 1


def _build(name: str, options: dict[str, str], known: Mapping[str, type[SparsecPass]]) -> SparsecPass:
    if name not in known:
        raise PassError(
            f"unknown pass {name!r}; known passes: {', '.join(known)}.{suggest(name, list(known))}"
        )
    cls = known[name]
    by_name = {f.name: f for f in fields(cls)}
    types_ = typing.get_type_hints(cls)
    values = {}
    for key, text in options.items():
        if key not in by_name:
            listed = ", ".join(by_name) if by_name else "none"
            raise PassError(
                f"{name}: unknown option {key!r}; its options: {listed}.{suggest(key, list(by_name))}"
            )
        values[key] = _value(name, by_name[key], types_[key], text)
    missing = [k for k, f in by_name.items() if _required(f) and k not in values]
    if missing:
        raise PassError(f"{name}: option {missing[0]!r} is required, as in {cls.EXAMPLE}")
    return cls(**values)


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(name: str, field: Field, type_: typing.Any, text: str) -> typing.Any:
    choices = field.metadata.get("choices")
    if choices is not None and text not in [str(c) for c in choices]:
        listed = [str(c) for c in choices]
        raise PassError(
            f"{name}: option {field.name} must be one of {', '.join(listed)}, got {text!r}."
            + suggest(text, listed)
        )
    if isinstance(type_, types.UnionType):  # float | None: None is the default
        (type_,) = [t for t in typing.get_args(type_) if t is not type(None)]
    if type_ is str:
        return text
    if type_ is bool:
        if text not in ("true", "false"):
            raise PassError(f"{name}: option {field.name} needs true or false, got {text!r}")
        return text == "true"
    try:
        value = type_(text)
    except ValueError:
        wanted = "an integer" if type_ is int else "a number"
        raise PassError(f"{name}: option {field.name} needs {wanted}, got {text!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise PassError(f"{name}: option {field.name} needs a finite number, got {text!r}")
    return value


def _print(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else json.dumps(value)
    return repr(value)
