"""The loop guard: every repetition is found in time, and ordinary text is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.engine import loops
from qwq_ref.engine.loops import DIFFERENT, LONGEST, PLAIN, TIMES, Loop, LoopGuard


def found_at(tokens, times=TIMES):
    """How many tokens it took, and the repetition; (None, None) without one."""
    guard = LoopGuard(times)
    for count, token in enumerate(tokens, 1):
        if guard.feed(token) is not None:
            return count, guard.loop
    return None, None


def naive(tokens, times, longest, different, plain):
    """The documented rule, word by word, on the end of some tokens."""
    for period in range(1, longest + 1):
        length = period * times
        if len(set(tokens[-period:])) < different:
            length = max(length, plain)
        tail = tokens[-length:]
        if len(tail) == length and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return period
    return None


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(2, 4), st.data())
def test_it_is_the_documented_rule(tokens, times, data):
    """With small limits, so that random tokens repeat themselves often."""
    patched = {"LONGEST": 12, "DIFFERENT": 3, "PLAIN": 9}
    unit = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=14))
    tokens = [*tokens, *unit * data.draw(st.integers(1, 6))]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patched.items():
            patch.setattr(loops, name, value)
        guard = LoopGuard(times)
        for count, token in enumerate(tokens, 1):
            loop = guard.feed(token)
            wanted = naive(tokens[:count], times, 12, 3, 9)
            assert (loop.period if loop else None) == wanted


@given(st.integers(0, 10), st.integers(1, LONGEST), st.integers(0, 300), st.sampled_from([2, 5, TIMES]))
def test_every_repetition_is_found_within_its_number_of_tokens(seed, period, before, times):
    rng = np.random.default_rng(seed)
    start, unit = rng.integers(0, 150_000, before).tolist(), rng.integers(0, 150_000, period).tolist()
    needed = times * period if len(set(unit)) >= DIFFERENT else max(times * period, PLAIN)
    tokens = [*start, -5, *unit * (needed // period + 2)]
    count, loop = found_at(tokens, times)
    assert count == before + 1 + needed
    assert loop == Loop(period, needed // period)


@given(st.integers(0, 10), st.integers(DIFFERENT, 200), st.integers(0, 10_000))
def test_a_change_within_the_window_is_no_repetition(seed, period, place):
    unit = np.random.default_rng(seed).permutation(10_000)[:period].tolist()
    tokens = unit * TIMES
    assert found_at(tokens)[0] == len(tokens)
    tokens[place % len(tokens)] = -7
    assert found_at(tokens) == (None, None)


@pytest.mark.parametrize(
    "tokens",
    [
        [7] * (PLAIN - 1),
        [7, 8] * (PLAIN // 2 - 1),
        [1, 4, 2, 8, 5, 7] * 170,  # the digits of 1/7
        ([3, 9] * 20 + [5]) * 20,  # a matrix of zeros, 20 x 20
        [token for row in range(500) for token in (50, row % 10, row // 10 % 10, row // 100, 51, 52, 53, 54)],
        list(range(100)) * (TIMES - 1),
    ],
    ids=["one", "two", "digits", "matrix", "numbered rows", "seven times"],
)
def test_ordinary_repetitions_are_none(tokens):
    assert found_at(tokens) == (None, None)


def test_the_last_loop_is_told():
    guard = LoopGuard(2)
    tokens = list(range(20)) * 3 + [99]
    assert [guard.feed(token) for token in tokens][-2:] == [Loop(20, 3), None]
