"""A wrong name is answered with the nearest right ones."""

import pytest

from qwq_ref.cli import COMMANDS
from qwq_ref.errors import did_you_mean
from qwq_ref.oracle import conformance
from qwq_ref.tasks import CATEGORIES, HARDER

OPTIONS = ["--temp", "--temperature", "--top-k", "--top-p", "--max-tokens", "--max-memory", "--ctx-size", "--think"]
MODELS = ["qwq-nano", "qwq-nano-base", "qwq-32b"]


@pytest.mark.parametrize(
    ("wrong", "known", "near"),
    [
        ("genrate", COMMANDS, "generate"),
        ("Info", COMMANDS, "info"),
        ("doc", COMMANDS, "doctor"),
        ("gaq", conformance(), "gqa"),
        ("ad3", CATEGORIES, "add3"),
        ("add_3", [*CATEGORIES, *HARDER], "add3"),
        ("--temprature", OPTIONS, "--temperature"),
        ("--ctx_size", OPTIONS, "--ctx-size"),
        ("-ctx-size", OPTIONS, "--ctx-size"),
        ("--max", OPTIONS, "--max-tokens or --max-memory"),
        ("--top", OPTIONS, "--top-k or --top-p"),
        ("QWQ_32B", MODELS, "qwq-32b"),
        ("qwq-nanobase", MODELS, "qwq-nano-base"),
        ("nano", MODELS, "qwq-nano"),
    ],
)
def test_a_near_name_is_named(wrong, known, near):
    assert did_you_mean(wrong, known) == f" (did you mean {near}?)"


@pytest.mark.parametrize("wrong", ["", "-", "--", "zzz", "--nothing", "x" * 10**6, "\x00", "什么"])
def test_a_name_that_is_far_from_all_gets_none(wrong):
    assert did_you_mean(wrong, [*COMMANDS, *OPTIONS, *MODELS]) == ""


def test_there_are_at_most_three_and_none_of_nothing():
    assert did_you_mean("add", ["add1", "add2", "add3", "add4"]) == " (did you mean add1 or add2 or add3?)"
    assert did_you_mean("add", []) == ""
