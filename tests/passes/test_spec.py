"""The text spelling of pipelines: what is printed parses back, and every mistake is answered in one line."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.passes import (
    INSERTERS,
    RECOGNISERS,
    PassError,
    SparsecPass,
    parse_pipeline,
    print_pipeline,
    spec,
)


@dataclass(frozen=True)
class Sample(SparsecPass):
    """One option of each type."""

    NAME: ClassVar[str] = "sample"
    SUMMARY: ClassVar[str] = "takes options and does nothing"
    EXAMPLE: ClassVar[str] = "sample{n=2}"

    n: int
    text: str = "a"
    x: float = 0.5
    on: bool = False
    maybe: float | None = None
    pick: str = field(default="one", metadata={"choices": ("one", "two words")})

    def run(self, model):
        return []


KNOWN = {"sample": Sample}


@given(
    n=st.integers(),
    text=st.text(),
    x=st.floats(allow_nan=False, allow_infinity=False),
    on=st.booleans(),
    maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    pick=st.sampled_from(["one", "two words"]),
)
def test_round_trip(n, text, x, on, maybe, pick):
    passes = [Sample(n, text, x, on, maybe, pick), Sample(0)]
    assert spec.parse(spec.unparse(passes), KNOWN) == passes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sparsemax",
        "sparsemax{where=all}",
        "entmax{alpha=1.25}",
        "threshold{kind=soft,tau=0.1}",
        "threshold{kind=shifted,tau=0.1,at=linear,m=2.0}",
        "nm{n=2,m=4,block=4}",
        "nm{n=2,m=4,block=4},sparsemax,threshold{kind=jump,tau=1e-05}",
    ],
)
def test_printed_as_written(text):
    assert print_pipeline(parse_pipeline(text)) == text


def test_spaces_defaults_and_empty_braces_do_not_matter():
    loose = ' threshold { kind = "soft" , tau = 0.10, at=relu } , sparsemax{} '
    assert print_pipeline(parse_pipeline(loose)) == "threshold{kind=soft,tau=0.1},sparsemax"


WRONG = {
    "sparsmax": (
        "unknown pass 'sparsmax'; known passes: nm, sparsemax, entmax, threshold, quantise-weights. "
        "Did you mean 'sparsemax'?"
    ),
    "zzz": "unknown pass 'zzz'; known passes: nm, sparsemax, entmax, threshold, quantise-weights.",
    "recognise-sparsemax": (
        "recognise-sparsemax always runs and takes no options; leave it out of the pipeline"
    ),
    "sparsemax{wher=all}": "sparsemax: unknown option 'wher'; its options: where. Did you mean 'where'?",
    "sparsemax{where=al}": (
        "sparsemax: option where must be one of attention, all, got 'al'. Did you mean 'all'?"
    ),
    "threshold{kind=soft}": "threshold: option 'tau' is required, as in threshold{kind=soft,tau=0.1}",
    "threshold{kind=soft,tau=x}": "threshold: option tau needs a number, got 'x'",
    "threshold{kind=soft,tau=nan}": "threshold: option tau needs a finite number, got 'nan'",
    "threshold{kind=soft,tau=-1}": "threshold: option tau must be finite and > 0, got -1.0",
    "threshold{kind=hard,tau=1,m=2}": "option m goes with kind=soft or kind=shifted, not hard; leave it out",
    "threshold{kind=soft,tau=1,m=0}": "threshold: option m must be finite and > 0, got 0.0",
    "nm{n=2.5,m=4}": "nm: option n needs an integer, got '2.5'",
    "sparsemax{where=all,where=all}": "sparsemax: option where is given twice; give it once",
    "sparsemax{where=all": "expected ',' or '}' after where=all, found 'the end'",
    "sparsemax{": "expected '}' at the end of sparsemax's options, found 'the end'",
    "sparsemax{where}": "expected '=' after sparsemax's option where, found '}'",
    "sparsemax{where=}": "expected the value of sparsemax's option where, found '}'",
    "sparsemax{=all}": "expected an option of sparsemax, found '='",
    "sparsemax sparsemax": "expected ',' after sparsemax, found 'sparsemax'",
    "sparsemax,": "ends with ','; name one more pass or drop the comma",
    ",": "expected a pass name, found ','",
    'sparsemax{where="all}': "cannot read '\"all}'; a string must be closed",
    'sparsemax{where="\\x"}': '"\\x" is no JSON string: Invalid',
}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes(text):
    with pytest.raises(PassError) as caught:
        parse_pipeline(text)
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boolean_options():
    assert spec.parse("sample{n=1,on=true}", KNOWN) == [Sample(1, on=True)]
    with pytest.raises(PassError, match="sample: option on needs true or false, got 'yes'"):
        spec.parse("sample{n=1,on=yes}", KNOWN)


def test_every_pass_is_documented_and_its_example_parses():
    assert len({p.NAME for p in (*RECOGNISERS, *INSERTERS)}) == len(RECOGNISERS) + len(INSERTERS)
    for cls in (*RECOGNISERS, *INSERTERS):
        assert cls.SUMMARY and cls.__doc__ is not None
    for cls in INSERTERS:
        (pass_,) = parse_pipeline(cls.EXAMPLE)
        assert type(pass_) is cls
        assert parse_pipeline(spec.spell(pass_)) == [pass_]
    for cls in RECOGNISERS:
        assert cls() == cls()  # no option is required


def test_options_are_checked_without_the_parser_too():
    from sparsec.passes.sparsemax_insert import InsertSparsemax
    from sparsec.passes.threshold_insert import InsertThreshold

    with pytest.raises(PassError, match="sparsemax: option where must be attention or all, got 'some'"):
        InsertSparsemax("some")
    with pytest.raises(PassError, match="option kind must be one of soft, hard, shifted, jump, got 'odd'"):
        InsertThreshold("odd", 0.1)
    with pytest.raises(PassError, match="option at must be one of relu, linear, got 'gelu'"):
        InsertThreshold("soft", 0.1, "gelu")
