"""A text that comes in pieces has the ids of the whole text."""

from unicodedata import normalize

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from qwq_ref.text.bpe import QWEN2_PATTERN
from qwq_ref.text.pieces import encode_pieces
from tests.support.small_tokenizer import SENTENCES, TEXT

LONG = st.lists(TEXT | st.sampled_from(["a", " b", "\n", "7", "'s", "'", "!\n", " \n", "字", "Ж "]), max_size=8)


def cut(text, width):
    return [text[i : i + width] for i in range(0, len(text), width)]


def joined(tokenizer, pieces):
    return [identity for ids in encode_pieces(tokenizer, pieces) for identity in ids]


@given(LONG.map("".join), st.integers(1, 9))
def test_ids_are_those_of_the_whole(small, text, width):
    assert joined(small, cut(text, width)) == small.encode(text)


class Words:
    """Encodes a text as the words that a tokenizer of Qwen2 merges: merges of a small vocabulary would hide a cut."""

    def __init__(self):
        isolated = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
        self.encode = lambda text: [word for word, _ in isolated.pre_tokenize_str(normalize("NFC", text))]


@given(LONG.map("".join), st.integers(1, 9))
@example("a'!b\n", 2)
@example("(\n\n)", 2)
@example("x\n \ny", 2)
def test_no_word_is_cut(text, width):
    assert joined(Words(), cut(text, width)) == Words().encode(text)


@pytest.mark.shared
@given(LONG.map("".join), st.integers(1, 9))
def test_real_ids_are_those_of_the_whole(real, text, width):
    assert joined(real, cut(text, width)) == real.encode(text)


@pytest.mark.parametrize("text", [SENTENCES[0] * 20, "line\n" * 200, "x=1;" * 200, "字。字" * 100 + "\n是"])
def test_a_piece_is_encoded_when_it_is_there(small, text):
    def pieces():
        nonlocal given
        for piece in cut(text, 20):
            given += len(piece)
            yield piece

    given = 0
    first = next(encode_pieces(small, pieces()))
    assert first
    assert given < len(text) or "字" in text


def test_nothing_has_no_ids(small):
    assert joined(small, []) == joined(small, ["", ""]) == []
