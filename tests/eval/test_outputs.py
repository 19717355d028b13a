"""Properties of an output beside its correctness: form, loops, language."""

import math

import numpy as np
import pytest

from qwq_ref import tasks
from qwq_ref.eval import outputs


@pytest.mark.parametrize(
    ("text", "ended", "ok"),
    [
        ("So 5\n</think>\n\nThe answer is \\boxed{5}.", True, True),
        ("So 5\n</think>\n\nThe answer is \\boxed{5}.", False, False),
        ("So \\boxed{5}\n</think>\n\nThe answer is \\boxed{5}.", True, True),  # a box in the reasoning answers nothing
        ("So 5\n\nThe answer is \\boxed{5}.", True, False),
        ("So \\boxed{5}\n</think>\n\nThe answer is 5.", True, False),
        ("So 5\n</think></think>\n\nThe answer is \\boxed{5}.", True, False),
        ("So 5\n</think>\n\n\\boxed{5} or \\boxed{6}.", True, False),
        ("So 5\n</think>\n\n\\boxed{5", True, False),
        ("", True, False),
    ],
)
def test_format(text, ended, ok):
    assert outputs.format_ok(text, ended) is ok


def test_loops():
    rng = np.random.default_rng(0)
    varied = [int(identity) for identity in rng.integers(0, 500, 60)]
    assert not outputs.is_loop(varied, ended=False)
    assert not outputs.is_loop([], ended=False)
    for period in (1, 2, 7, 20, 64):
        cycle = [1000 + n for n in range(period)]
        repeated = varied + cycle * max(3, math.ceil(24 / period))
        assert outputs.periodic_tail(repeated)
        assert outputs.periodic_tail(repeated[:-1]) is (period == 7)  # the others are just long enough
        assert outputs.is_loop(repeated, ended=False)
        assert outputs.is_loop(varied[:10] + cycle * 100, ended=True)  # more than half repeats, even though it ended
    assert outputs.repetition([5] * 108) == pytest.approx(100 / 101)
    assert outputs.repetition(list(range(100))) == 0 == outputs.repetition([1, 2])


@pytest.mark.parametrize(
    ("language", "text", "switched"),
    [
        ("en", "So 5\n</think>\n\nThe answer is \\boxed{5}.", False),
        ("en", "So 所以5", True),
        ("en", "Step by step：", True),
        ("en", "\\boxed{奇数}", True),
        ("en", "naïve – café", False),
        ("zh", "所以5\n</think>\n\n答案是\\boxed{5}。<|im_end|>", False),
        ("zh", "所以x+ab=5", False),
        ("zh", "答案是\\boxed{odd}", False),
        ("zh", "7\\times 4, $\\text{max}$", False),
        ("zh", "So 5", False),
        ("zh", "Step 5", True),
        ("zh", "答案是 The \\boxed{5}", True),
    ],
)
def test_language_switches(language, text, switched):
    problem = tasks.generate("add3", np.random.default_rng(0), language)
    assert outputs.language_switch(problem, text) is switched
