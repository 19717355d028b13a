"""Types of option values, and that every command refuses a bad value in the same way."""

import re
from argparse import ArgumentTypeError

import pytest

from qwq_ref.cli import COMMANDS, main, values
from qwq_ref.core import MOST_THREADS


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (values.integer(), "-7", -7),
        (values.count, "1", 1),
        (values.seed, str(2**64 - 1), 2**64 - 1),
        (values.number(), "-1e-3", -0.001),
        (values.fraction, "1", 1.0),
        (values.size, "800M", 800 << 20),
        (values.size, "1.5GiB", 3 << 29),
        (values.size, "77", 77),
        (values.many(values.count), "1,2,3", [1, 2, 3]),
        (values.one_of(["a", "b"])["type"], "b", "b"),
        (values.some_of(["a", "b"])["type"], "b,a", ["b", "a"]),
    ],
)
def test_what_a_text_becomes(convert, text, value):
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text", "problem"),
    [
        (values.integer(), "1.5", "must be an integer, got 1.5"),
        (values.seed, "9" * 23, f"must be at most 18446744073709551615, got {'9' * 23}"),
        (values.seed, "-" + "9" * 23, f"must be at least 0, got -{'9' * 23}"),
        (values.integer(), "1" + "0" * 5000, f"must be at most {'9' * 20}, got 1{'0' * 59}"),
        (values.integer(), "-1" + "0" * 20, f"must be at least -{'9' * 20}, got -1{'0' * 20}"),
        (values.integer(), "", "must be an integer, got nothing"),
        (values.integer(), "٣", "must be an integer, got ٣"),
        (values.integer(), "1_000", "must be an integer, got 1_000"),
        (values.count, "0", "must be at least 1, got 0"),
        (values.integer(most=5), "6", "must be at most 5, got 6"),
        (values.seed, "-1", "must be at least 0, got -1"),
        (values.number(), "nan", "must be a number, got nan"),
        (values.number(), "inf", "must be a number, got inf"),
        (values.fraction, "1.1", "must be at most 1, got 1.1"),
        (values.size, "much", "must be a size such as 800M or 8G, got much"),
        (values.many(values.count), "1,,2", "must be an integer, got nothing"),
        (values.one_of(["a", "b"])["type"], "c", "must be one of a, b, got c"),
        (values.some_of(["a", "b"])["type"], "a,c", "must be one of a, b, got c"),
        (values.one_of(["a"])["type"], "x" * 99, f"must be one of a, got {'x' * 60}"),
    ],
)
def test_what_is_refused(convert, text, problem):
    with pytest.raises(ArgumentTypeError) as caught:
        convert(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("generate x -t 0", "-t/--threads: must be at least 1, got 0"),
        ("generate x -t 1025", "-t/--threads: must be at most 1024, got 1025"),
        ("generate x -c -1", "-c/--ctx-size: must be at least 1, got -1"),
        ("generate x --temp -1", "--temp: must be at least 0, got -1.0"),
        ("generate x --top-k x", "--top-k: must be an integer, got x"),
        ("generate x --top-p 2", "--top-p: must be at most 1, got 2.0"),
        ("generate x --weights q3", "--weights: must be one of fp32, bf16, q8, q4, file, got q3"),
        ("generate x --kv q8", "--kv: must be one of fp32, int8, got q8"),
        ("generate x --think-budget -2", "--think-budget: must be at least 0, got -2"),
        ("convert x -t 0", "-t/--threads: must be at least 1, got 0"),
        ("convert x --weights q3", "--weights: must be one of fp32, bf16, q8, q4, file, got q3"),
        ("eval -n 0", "-n/--problems: must be at least 1, got 0"),
        ("eval --max-tokens 0", "--max-tokens: must be at least 1, got 0"),
        ("golden record -o x -t 0", "-t/--threads: must be at least 1, got 0"),
        ("golden record -o x --max-memory much", "--max-memory: must be a size such as 800M or 8G, got much"),
        ("train base -o x --steps 0", "--steps: must be at least 1, got 0"),
        ("train bass -o x", "stage: must be one of base, cold-start, control, rl, got bass (did you mean base?)"),
        ("info -c 0", "-c/--ctx-size: must be at least 1, got 0"),
        ("generate --nothing", "--nothing: is not an option of qwq generate (see qwq generate --help)"),
        ("golden", "the following arguments are required: ACTION (see qwq golden --help)"),
        ("doctor -t 0", "-t/--threads: must be at least 1, got 0"),
        ("bench -t 1,0", "-t/--threads: must be at least 1, got 0"),
        ("bench --op argmax -T 1,x", "-T/--tokens: must be an integer, got x"),
        (
            "nothing",
            "nothing: is not a command; there are generate, chat, batch, info, tokenize, serve, convert, eval,",
        ),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_option(arguments, problem, capsys):
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qwq: {problem}")
    assert err.count("\n") == 1


def test_the_limit_of_threads_is_the_cores():
    assert values.threads(str(MOST_THREADS)) == MOST_THREADS
    with pytest.raises(ArgumentTypeError):
        values.threads(str(MOST_THREADS + 1))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_prints_and_no_option_has_a_plain_type(command, capsys):
    """`int` and `float` accept what `values` refuses, such as nan."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: qwq {command}")
    import importlib

    source = importlib.import_module(f"qwq_ref.cli.{command}").__file__
    with open(source, encoding="utf-8") as file:
        assert not re.findall(r"type=(?:int|float)\b", file.read())
