"""Ids of a long text that comes in pieces. They are those of the whole text, and only a piece is held."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .tokenizer import Tokenizer

# Places where a token of Qwen2 always ends, whatever stands before and behind: `bpe.QWEN2_PATTERN` splits there, and
# Unicode normalisation joins nothing across. A newline before what is no white space; a letter or a digit before an
# ASCII character that is neither. The letters are few, because the tables of Unicode differ between libraries.
_CUT = re.compile("\n(?=\\S)|[A-Za-z0-9\u0410-\u044f\u4e00-\u9fa5](?=[\x00-/:-@\\[-`{-\x7f])")
_NEAR = 1 << 10  # characters at the end of a piece, where a place is looked for first


def encode_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the ids of a text whose pieces are `texts`: joined, they are `tokenizer.encode` of the joined pieces.

    A text without letters of these scripts, digits and line ends is held until its end.
    Raises TokenizerError as `Tokenizer.encode`.
    """
    rest = ""
    for text in texts:
        rest += text
        end = _last_cut(rest)
        if end:
            yield tokenizer.encode(rest[:end])
            rest = rest[end:]
    if rest:
        yield tokenizer.encode(rest)


def _last_cut(text: str) -> int:
    """Return the length of the longest part that can be encoded by itself; 0 if there is none."""
    for start in (max(0, len(text) - _NEAR), 0):
        ends = [match.end() for match in _CUT.finditer(text, start)]
        if ends:
            return ends[-1]
    return 0
