"""Run a tokenizer: text to ids, and ids to text.

Only trusted text may become an added token (`encode(..., special=True)`). In all other text, `<|im_end|>` is ten
characters like any others. The library has a switch for that, `encode_special_tokens`, but the switch ignores added
tokens that are not marked special, such as `<think>`. So the library gets no added tokens at all.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from ..errors import TokenizerError, UsageError
from ..files import StrPath
from .tokenizer_config import AddedToken


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character -> byte: Latin-1 if it prints the byte, else the next free from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF = _byte_alphabet()

# Fill-in-the-middle: role -> the token of Qwen2.5-Coder.
FIM = {
    **{role: f"<|fim_{role}|>" for role in ("prefix", "suffix", "middle", "pad")},
    **{"repository": "<|repo_name|>", "file": "<|file_sep|>"},
}


class Tokenizer:
    """A tokenizer, made by `load_tokenizer`. Immutable, and safe to share between threads.

    size         one more than the largest id that text can have; the logits from `size` on are padding, never sampled
    holes        ranges of ids below `size` that have no token; they are never sampled either
    added        added token -> id, the special ones and those like <think>
    special      ids of the added tokens marked special, which `decode` leaves out
    eos          id of the token that ends a text by tokenizer_config.json or a GGUF file, or None
    ends         `eos` and all other ids that these files name as the end of an answer
    bos          id of the token that begins a text, or None
    adds_bos     whether `begin` puts `bos` before a text: add_bos_token of a GGUF file
    think_start  id of <think>, or None for a model without it
    think_end    id of </think>, or None
    fim          role in filling a gap -> id, of the roles in `FIM` that have a token

    has_normalized  whether some added tokens are looked for in normalised text
    spellings       added token as text must spell it, normalised where it is looked for so -> id
    """

    def __init__(
        self,
        file: StrPath,
        bpe: Any,
        size: int,
        tokens: Sequence[AddedToken],
        holes: tuple[range, ...] = (),
        eos: str | None = None,
        *,
        bos: str | None = None,
        ends: Sequence[str] = (),
        adds_bos: bool = False,
        fim: Mapping[str, str] | None = None,
    ) -> None:
        self.file = file
        self.size = size
        self.holes = holes
        self.added = {token.content: token.identity for token in tokens}
        self.special = frozenset(token.identity for token in tokens if token.special)
        self.eos, self.bos, *others = [
            None if token is None else self.added.get(token, bpe.token_to_id(token)) for token in (eos, bos, *ends)
        ]
        self.ends: tuple[int, ...] = tuple(dict.fromkeys(i for i in (self.eos, *others) if i is not None))
        self.adds_bos = adds_bos and self.bos is not None
        self.think_start = self.added.get("<think>")
        self.think_end = self.added.get("</think>")
        named = {role: token for role, token in {**FIM, **(fim or {})}.items() if token in self.added}
        self.fim = {role: self.added[token] for role, token in named.items()}
        self.has_normalized = any(token.normalized for token in tokens)
        self._bpe = bpe
        self._exact = _Cutter({token.content: token.identity for token in tokens if not token.normalized})
        self._normalized = _Cutter({self.normalize(t.content): t.identity for t in tokens if t.normalized})
        self.spellings = self._exact.ids | self._normalized.ids  # the library, too, decodes the normalised spelling
        self._bytes = {identity: _token_bytes(spelling) for spelling, identity in self.spellings.items()}

    def library_json(self) -> str:
        """Return the vocabulary, the merges and the steps before them as the library writes them to tokenizer.json."""
        text: str = self._bpe.to_str()
        return text

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text. Nothing is put before or after it.

        special=False  every character is plain text: use it for the words of a user, a tool or a model
        special=True   an added token in the text becomes its id, the leftmost and longest first: for trusted text only

        Raises TokenizerError for a lone surrogate, which is not text. Undecodable command lines contain them.
        """
        if not special:
            return self._encode_plain(text)
        ids: list[int] = []
        for segment in self.split_added(text):
            ids += [segment] if isinstance(segment, int) else self._encode_plain(segment)
        return ids

    def least(self, text: str) -> int:
        """Return a number of ids that a text has at least, much faster than `encode`. Raises TokenizerError.

        No id has more bytes than the longest one. An added token in the text counts as plain text.
        """
        if len(text) <= self._longest:
            return min(len(text), 1)
        size = len(self.normalize(text).encode("utf-8", "surrogatepass"))
        return -(-size // self._longest)

    @functools.cached_property
    def _longest(self) -> int:
        """The most bytes that an id of plain text has."""
        holes = {identity for hole in self.holes for identity in hole}
        return max(len(self.token_bytes(identity)) for identity in range(self.size) if identity not in holes)

    def begin(self, ids: list[int]) -> list[int]:
        """Return the ids of a prompt with `bos` before them, if `adds_bos` and they do not begin with it."""
        if not self.adds_bos or self.bos is None or ids[:1] == [self.bos]:
            return ids
        return [self.bos, *ids]

    def split_added(self, text: str) -> list[str | int]:
        """Cut a text at its added tokens: return their ids, and the non-empty strings between them.

        If some tokens are marked as normalised, these strings are normalised too. Raises TokenizerError as `encode`.
        """
        parts = self._exact.cut(text)
        if not self.has_normalized:
            return parts
        cut = (self._normalized.cut(self.normalize(part)) if isinstance(part, str) else [part] for part in parts)
        return [*itertools.chain.from_iterable(cut)]

    def normalize(self, text: str) -> str:
        """Return the text as `encode` reads it: in NFC, if tokenizer.json says so. Raises TokenizerError."""
        if self._bpe.normalizer is None:
            return text
        normal: str = _called(self._bpe.normalizer.normalize_str, text)
        return normal

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = _called(self._bpe.encode, text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, identity: SupportsIndex) -> bytes:
        """Return the bytes of a token, which may be a part of a character.

        Raises TokenizerError for an id that no text has: a negative one, or a padding row of the embedding.
        """
        identity = operator.index(identity)
        cached = self._bytes.get(identity)
        if cached is None:
            if not 0 <= identity < self.size:
                raise TokenizerError(self.file, None, f"id {identity} is not one of the {self.size} ids that text has")
            token = self._bpe.id_to_token(identity)
            if token is None:
                raise TokenizerError(self.file, None, f"id {identity} has no token")
            cached = self._bytes[identity] = _token_bytes(token)
        return cached

    def decode(self, ids: Iterable[SupportsIndex], *, skip_special: bool = True) -> str:
        """Return the text of ids. Bytes that are not UTF-8 become U+FFFD.

        skip_special  leave out special tokens; <think> is not special, and stays

        Raises TokenizerError as `token_bytes` does.
        """
        kept = (identity for identity in ids if not (skip_special and identity in self.special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")


class StreamDecoder:
    """Decode one id at a time. The joined pieces equal `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden: frozenset[int] = tokenizer.special if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, identity: SupportsIndex) -> str:
        """Return the characters that this id completes, which may be none."""
        if identity in self._hidden:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(identity))

    def finish(self) -> str:
        """Return U+FFFD for an incomplete character at the end, or an empty string, and reset the decoder."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class _Cutter:
    """Finds tokens in texts, the leftmost and longest first."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        self._pattern = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or r"(?!)")

    def cut(self, text: str) -> list[str | int]:
        """Return the ids of the tokens in a text, and the non-empty strings between them."""
        parts: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text):
            parts += [text[end : match.start()], self.ids[match[0]]]
            end = match.end()
        return [part for part in (*parts, text[end:]) if part != ""]


def check_fits(count: int, most: int, field: str = "prompt", *, least: bool = False) -> None:
    """Raise UsageError for more ids than a context holds; least: there may be more."""
    if count > most:
        about = "at least " if least else ""
        raise UsageError(None, field, f"of {about}{count} tokens does not fit in the context of {most}")


def _called(function: Callable[..., Any], text: str, **more: Any) -> Any:
    """Call a function of the library. Raises TokenizerError for a lone surrogate."""
    try:
        return function(text, **more)
    except (TypeError, UnicodeEncodeError):  # the library's answer to a str that is not Unicode text
        if surrogate := re.search("[\ud800-\udfff]", text):
            problem = f"character {surrogate.start()} is a lone surrogate, not text"
            raise TokenizerError(None, "text", problem) from None
        raise


def _token_bytes(token: str) -> bytes:
    """Return the bytes of a token, by the inverse of the byte alphabet.

    An added token with a character outside the alphabet stands for its own UTF-8. One that is wholly inside, but not
    ASCII, is still read as bytes. The library does the same.
    """
    try:
        return bytes(map(BYTE_OF.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")
