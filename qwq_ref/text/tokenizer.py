"""Read, check and run a tokenizer.json: the byte-level BPE of Qwen2.

The `tokenizers` library does the merging. This module checks or does everything that decides the meaning of an id:
the ids, the pre-tokenizer, and above all the added tokens. The library would accept errors there silently.

Only trusted text may become an added token (`encode(..., special=True)`). In all other text, `<|im_end|>` is ten
characters like any others. The library has a switch for that, `encode_special_tokens`, but the switch ignores added
tokens that are not marked special, such as `<think>`. So the library gets no added tokens at all.
"""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

from ..errors import TokenizerError
from ..files import StrPath, read_json

_FILE_BYTES = 50_000_000
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
# Fields that change the meaning of a BPE, and their neutral values.
_PLAIN_BPE: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character -> byte: Latin-1 if it prints the byte, else the next free from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


class Tokenizer:
    """A tokenizer, made by `load_tokenizer`. Immutable, and safe to share between threads.

    size         the number of ids that text can have, 0..size-1; the logits from `size` on are padding, never sampled
    added        added token -> id, the special ones and those like <think>
    special      ids of the added tokens marked special, which `decode` leaves out
    think_start  id of <think>, or None for a model without it
    think_end    id of </think>, or None
    """

    def __init__(self, file: StrPath, bpe: Any, size: int, added: dict[str, int], special: frozenset[int]) -> None:
        self.file = file
        self.size = size
        self.added = added
        self.special = special
        self.think_start = added.get("<think>")
        self.think_end = added.get("</think>")
        self._bpe = bpe
        self._bytes = {identity: _token_bytes(token) for token, identity in added.items()}
        longest_first = sorted(added, key=len, reverse=True)
        self._added_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

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

    def split_added(self, text: str) -> list[str | int]:
        """Cut a text at its added tokens: return their ids, and the non-empty strings between them."""
        parts: list[str | int] = []
        end = 0
        for match in self._added_pattern.finditer(text):
            parts += [text[end : match.start()], self.added[match[0]]]
            end = match.end()
        return [part for part in (*parts, text[end:]) if part != ""]

    def _encode_plain(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        except TypeError:  # the library's answer to a str that is not Unicode text
            if surrogate := re.search("[\ud800-\udfff]", text):
                problem = f"character {surrogate.start()} is a lone surrogate, not text"
                raise TokenizerError(None, "text", problem) from None
            raise
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
            cached = self._bytes[identity] = _token_bytes(self._bpe.id_to_token(identity))
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


def load_tokenizer(folder_or_file: StrPath, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder.

    vocab_size  the model's vocabulary, that is the rows of its embedding; no id may reach it

    A post-processor is not applied. Some put a BOS before every text, but chat templates write their own.
    Raises TokenizerError.
    """
    path = Path(folder_or_file)
    if path.is_dir():
        path /= "tokenizer.json"
    values = read_json(path, _FILE_BYTES, TokenizerError)
    nfc = _check_pipeline(values, path)
    vocab, merges = _read_model(values.get("model"), path)
    added, special = _read_added(values.get("added_tokens"), path)
    size = _check_ids(vocab, added, vocab_size, path)
    return Tokenizer(path, _build(vocab, merges, nfc, path), size, added, special)


def _build(vocab: dict[str, int], merges: list[tuple[str, str]], nfc: bool, path: Path) -> Any:
    """Build the library's tokenizer of checked parts, without added tokens."""
    import tokenizers  # here, because it takes long and not every command needs it
    from tokenizers import models, normalizers, pre_tokenizers

    try:
        bpe = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as problem:  # the library raises Exception itself, for one for a merge of unknown parts
        raise TokenizerError(path, "model.merges", f"cannot be used ({problem})") from None
    if nfc:
        bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return bpe


def _check_pipeline(values: dict[str, Any], path: Path) -> bool:
    """Check normalizer, pre-tokenizer and decoder, and return whether text is put in NFC.

    Any others would cut text at other places, and nothing would show it.
    """
    normalizer = values.get("normalizer")
    nothing, nfc = {"type": "Sequence", "normalizers": []}, {"type": "NFC"}
    if normalizer not in (None, nothing, nfc, {"type": "Sequence", "normalizers": [nfc]}):
        raise TokenizerError(path, "normalizer", "unknown normalizer; Qwen2's is NFC")
    if not _is_qwen2_pre_tokenizer(values.get("pre_tokenizer")):
        raise TokenizerError(path, "pre_tokenizer", "unknown pre-tokenizer; Qwen2's is its own Split, then ByteLevel")
    decoder = values.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise TokenizerError(path, "decoder", "unknown decoder; Qwen2's is ByteLevel")
    return normalizer not in (None, nothing)


def _is_qwen2_pre_tokenizer(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"type", "pretokenizers"} or value["type"] != "Sequence":
        return False
    parts = value["pretokenizers"]
    if not isinstance(parts, list) or len(parts) != 2 or not isinstance(parts[1], dict):
        return False
    # trim_offsets concerns positions in the text, never ids; files set it both ways.
    byte_level = {key: item for key, item in parts[1].items() if key != "trim_offsets"}
    return bool(parts[0] == _SPLIT and byte_level == _BYTE_LEVEL)


def _read_model(model: Any, path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise TokenizerError(path, "model.type", "must be BPE")
    for name, harmless in _PLAIN_BPE.items():
        if model.get(name) not in harmless:
            raise TokenizerError(path, f"model.{name}", f"must be {harmless[-1]!r} or null; anything else changes ids")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict):
        raise TokenizerError(path, "model.vocab", "must be an object of tokens and ids")
    _check_types(vocab, path, "model.vocab")
    # The library would silently drop a byte that has no token.
    if missing := _BYTE_OF.keys() - vocab.keys():
        raise TokenizerError(path, "model.vocab", f"has no token for byte {min(_BYTE_OF[char] for char in missing)}")
    if strange := set("".join(vocab)) - _BYTE_OF.keys():
        raise TokenizerError(path, "model.vocab", f"holds {min(strange)!r}, which stands for no byte")
    if not isinstance(merges, list):
        raise TokenizerError(path, "model.merges", "must be a list of pairs of tokens")
    # Older files write a pair as one string, "a b".
    pairs = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge)
        for merge in merges
        if isinstance(merge, (str, list))
    ]
    if len(pairs) != len(merges) or any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(path, "model.merges", "must be a list of pairs of tokens")
    return vocab, pairs  # the library checks that the parts are tokens


def _read_added(entries: Any, path: Path) -> tuple[dict[str, int], frozenset[int]]:
    """Return added token -> id, and the ids of those that are special."""
    if not isinstance(entries, list):
        raise TokenizerError(path, "added_tokens", "must be a list")
    added: dict[str, int] = {}
    special = set()
    for number, entry in enumerate(entries):
        field = f"added_tokens[{number}]"
        if not isinstance(entry, dict) or not isinstance(content := entry.get("content"), str) or not content:
            raise TokenizerError(path, f"{field}.content", "must be a non-empty string")
        if re.search("[\ud800-\udfff]", content):
            raise TokenizerError(path, f"{field}.content", "holds a lone surrogate, which is not text")
        if content in added:
            raise TokenizerError(path, f"{field}.content", f"{content!r} appears twice")
        for flag in ("lstrip", "rstrip", "single_word", "normalized"):
            if entry.get(flag) is not False:
                raise TokenizerError(path, f"{field}.{flag}", "must be false: tokens match exactly as they are written")
        if not isinstance(entry.get("special"), bool):
            raise TokenizerError(path, f"{field}.special", "must be true or false")
        _check_types({content: entry.get("id")}, path, "added_tokens")
        added[content] = entry["id"]
        if entry["special"]:
            special.add(entry["id"])
    return added, frozenset(special)


def _check_types(ids: dict[str, Any], path: Path, field: str) -> None:
    for token, identity in ids.items():
        if type(identity) is not int or identity < 0:  # to isinstance, true is an int
            raise TokenizerError(path, f"{field}[{token!r}]", "id must be a non-negative integer")


def _check_ids(vocab: dict[str, int], added: dict[str, int], vocab_size: int | None, path: Path) -> int:
    """Check that each id has one token, and that the ids are 0..size-1, so that all can be decoded. Return size."""
    for token, identity in added.items():
        if vocab.get(token, identity) != identity:
            raise TokenizerError(
                path, f"added_tokens[{token!r}]", f"has id {identity}; model.vocab says {vocab[token]}"
            )
    ids = vocab | added
    size = len(ids)
    last = max(ids, key=ids.__getitem__)
    if vocab_size is not None and ids[last] >= vocab_size:
        problem = f"id {ids[last]} is outside of the model's vocabulary of {vocab_size}"
        raise TokenizerError(path, f"{'added_tokens' if last in added else 'model.vocab'}[{last!r}]", problem)
    if len(set(ids.values())) != size:
        seen: dict[int, str] = {}
        for token, identity in ids.items():
            if (other := seen.setdefault(identity, token)) != token:
                where = "added_tokens" if token in added else "model.vocab"
                raise TokenizerError(path, f"{where}[{token!r}]", f"id {identity} is also that of {other!r}")
    if ids[last] != size - 1:
        raise TokenizerError(path, "model.vocab", f"leaves holes: {size} tokens have ids up to {ids[last]}")
    return size


def _token_bytes(token: str) -> bytes:
    """Return the bytes of a token, by the inverse of the byte alphabet.

    An added token with a character outside the alphabet stands for its own UTF-8. One that is wholly inside, but not
    ASCII, is still read as bytes. The library does the same.
    """
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")
