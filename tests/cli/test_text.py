"""Numbers and tables as people read them."""

import pytest

from sparsec.compiler.cli import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5e9, "5.0 GB"),
        (7e12, "7000.0 GB"),
    ],
)
def test_size(count, shown):
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(12.34, "12.3 s"), (0.238, "238 ms"), (0.00731, "7.31 ms"), (0.000042, "0.042 ms")],
)
def test_duration(seconds, shown):
    assert text.duration(seconds) == shown


def test_count():
    assert [text.count(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


def test_shape():
    assert text.shape((1, 3, 224)) == "1x3x224"
    assert text.shape(()) == "scalar"


def test_visible_keeps_one_line():
    assert text.visible("a\nb\r\x1b[31mü") == "a\\nb\\r\\x1b[31mü"


def test_table_aligns_by_columns_of_the_terminal():
    lines = text.table(["name", "n"], [["a", "10"], ["模型", "9"]], "<>")
    assert lines == ["name   n", "----  --", "a     10", "模型   9"]
