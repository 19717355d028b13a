"""The printer of tables."""

import pytest

from qwq_ref.tables import Table, definitions

ROWS = [["add3", "5", "100.0%"], ["a longer one", "10", "9%"]]


def test_columns_are_as_wide_as_their_longest_cell():
    assert Table(["category", "n", "accuracy"], "<>>").text(ROWS).split("\n") == [
        "category       n  accuracy",
        "add3           5    100.0%",
        "a longer one  10        9%",
    ]


def test_a_least_width_holds():
    assert Table(["a", "b"], "<>", [4, 3]).text([["x", "y"]]) == "a       b\nx       y"
    assert Table(["a", "b"], "<>", [4, 3]).text([["x", "12345"]]) == "a         b\nx     12345"


def test_lines_of_a_growing_table_align_with_its_headings():
    table = Table(["category", "n"], "<>", [10, 4])
    assert [table.line(table.headings), table.line(["add3", "5"])] == ["category       n", "add3           5"]


def test_no_line_ends_in_blanks():
    assert Table(["a", "b"], "<<").text([["x", ""], ["y", "long"]]) == "a  b\nx\ny  long"


def test_markdown_escapes_the_bar():
    assert Table(["op", "ms"], "<>").markdown([["a|b", "1"]]) == "| op | ms |\n| --- | ---: |\n| a\\|b | 1 |"


@pytest.mark.parametrize("align", ["<", "<<>", "<^"])
def test_an_alignment_that_does_not_fit_the_columns_is_refused(align):
    with pytest.raises(ValueError, match="2 columns, aligned as"):
        Table(["a", "b"], align)


def test_a_row_with_another_number_of_cells_is_refused():
    with pytest.raises(ValueError, match="zip"):
        Table(["a", "b"], "<>").text([["x"]])


def test_definitions_have_no_headings():
    assert definitions([("gqa", "grouped"), ("", "a folder"), ("window", "sliding")]) == (
        "gqa     grouped\n        a folder\nwindow  sliding"
    )
    assert definitions([]) == ""
