"""Stop strings: any cut into pieces gives the text of the naive search over the whole."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.engine.stopping import Stopping

words = st.text("ab\n", min_size=1, max_size=5)


def cut(text, places):
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def naive(text, strings):
    """Character by character: the first end of a stop string, and of those that end there the longest."""
    for end in range(len(text) + 1):
        here = [string for string in strings if text[:end].endswith(string)]
        if here:
            longest = max(here, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.text("ab\n", max_size=30), st.lists(words, max_size=4), st.lists(st.integers(0, 40), max_size=8))
def test_any_cut_gives_the_text_of_the_whole(text, strings, places):
    stopping = Stopping(strings)
    given_out = [stopping.feed(piece) for piece in cut(text, places)]
    assert ("".join(given_out) + stopping.finish(), stopping.found) == naive(text, strings)


@given(st.text("ab\n", max_size=30), st.lists(words, max_size=4))
def test_text_is_held_only_while_it_may_become_a_stop_string(text, strings):
    stopping, out = Stopping(strings), ""
    for n, character in enumerate(text):
        out += stopping.feed(character)
        if stopping.found is not None:
            break
        held = text[len(out) : n + 1]
        assert text[: n + 1] == out + held
        assert not held or any(string.startswith(held) and string != held for string in strings)
        longer = text[len(out) - 1 : n + 1] if out else None
        assert longer is None or not any(string.startswith(longer) for string in strings)


def test_a_stop_string_is_found_at_its_last_character():
    stopping = Stopping(["STOP", "END."])
    assert [stopping.feed(piece) for piece in ("Well S", "T", "OS", "TO", "P and", " more")] == [
        "Well ",
        "",
        "STO",
        "",
        "",
        "",
    ]
    assert stopping.found == "STOP"
    assert stopping.finish() == ""


@pytest.mark.parametrize(
    ("strings", "text", "wanted"),
    [
        (["abc", "b"], "xabc", ("xa", "b")),  # the one that ends first
        (["b", "ab"], "xab", ("x", "ab")),  # of two that end together, the longest
        (["aab"], "aaab", ("a", "aab")),  # a start within a start
        (["\n\n"], "a\n\n\nb", ("a", "\n\n")),
        ([], "a", ("a", None)),
    ],
)
def test_which_one_counts(strings, text, wanted):
    for pieces in ([text], list(text)):
        stopping = Stopping(strings)
        assert ("".join(map(stopping.feed, pieces)) + stopping.finish(), stopping.found) == wanted
