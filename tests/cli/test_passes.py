"""``sparsec passes`` says all that --passes understands, and nothing else."""

import dataclasses
import json

from sparsec.passes import INSERTERS, RECOGNISERS, parse_pipeline, print_pipeline


def test_every_pass_and_option_is_listed(call):
    found = {entry["name"]: entry for entry in json.loads(call("passes", "--json").stdout)}
    assert list(found) == [cls.NAME for cls in (*INSERTERS, *RECOGNISERS)]
    for cls in INSERTERS:
        entry = found[cls.NAME]
        assert entry["runs"] == "on request"
        assert [option["name"] for option in entry["options"]] == [f.name for f in dataclasses.fields(cls)]
        assert all(option["help"] for option in entry["options"])


def test_the_examples_are_understood(call):
    result = call("passes")
    assert result.exit_code == 0
    for cls in INSERTERS:
        assert f"--passes '{cls.EXAMPLE}'" in result.stdout
        assert print_pipeline(parse_pipeline(cls.EXAMPLE)).split("{")[0] == cls.NAME


def test_choices_and_defaults_are_shown(call):
    text = call("passes").stdout
    assert "one of attention, all; default attention" in text
    assert "required" in text
