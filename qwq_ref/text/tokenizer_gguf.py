"""The tokenizer in the metadata of a GGUF file, made equal to the tokenizer.json that the file came from.

A GGUF file holds the tokens and the merges of the BPE, and one type for each token. Three things are missing in it:

- The normaliser. Qwen2's text is put in NFC.
- The pre-tokenizer is a name. The names of Qwen2's are known, and others are refused. Some files name another model's.
- Whether a token is special. Converters mark each token as a control token that looks like one, such as
  <|fim_prefix|>, although tokenizer.json calls it ordinary. So tokens whose flag is known keep that of tokenizer.json.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import repeat
from operator import contains
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..files import StrPath
from .bpe import MOST_ADDED, NOT_SPECIAL, build, check_alphabet, holes
from .gguf_metadata import MODEL, NO_TOKENIZER, PREFIX, TOKENS, TYPES, UNUSED, Metadata, is_padding
from .tokenizer import BYTE_OF, Tokenizer
from .tokenizer_config import AddedToken

_PRE = f"{PREFIX}pre"
_MERGES, _SCORES = f"{PREFIX}merges", f"{PREFIX}scores"
_ADD_BOS = f"{PREFIX}add_bos_token"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, UNUSED, 6
_OF_QWEN2 = ("qwen2", "deepseek-r1-qwen")
_GUESSES = (None, "default", "llama-bpe")  # what converters write that do not know a model
# SHA-256 of the 151,643 tokens of the vocabulary, which all models with Qwen2's tokenizer have.
_VOCABULARY = (151_643, "36c3749fd3c87e2402f612459b45ae4e6ce5488a3ecde47a8a3ea3ed3d5dda5a")
# Added tokens of every chat model. A file that calls them normal is wrong: its template needs them.
_TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# generation_config.json of Qwen's chat models names it beside <|im_end|>. A GGUF file has room for one of the two.
_END_OF_TEXT = "<|endoftext|>"


def gguf_tokenizer(file: StrPath, fields: Mapping[str, Any], vocab_size: int | None = None) -> Tokenizer:
    """Return the tokenizer in the header of a GGUF file.

    fields      `fields` of the header: see `formats.gguf.read_header`
    vocab_size  the model's vocabulary, that is the rows of its embedding; no id may reach it. Padding may

    Warns of a file that names the pre-tokenizer of another model. Raises TokenizerError, and CheckpointError for an
    array that is not UTF-8.
    """
    data = Metadata(file, fields, TokenizerError)
    _check_kind(data)
    tokens, types = _read_tokens(data)
    _check_pre(data, tokens)
    merges = _read_merges(data)
    vocab, added = _divided(data, tokens, types)
    named = data.named(tokens, types)
    adds_bos = data.flag(_ADD_BOS)
    if adds_bos and "bos" not in named:
        raise TokenizerError(file, _ADD_BOS, "is true, but the file names no bos token")
    fim = data.fim(tokens, types)
    _promote(vocab, added, merges, [*named.values(), *fim.values()])
    check_alphabet(vocab, Path(file), TOKENS)
    ids = [*vocab.values(), *added.values()]
    size = max(ids) + 1
    if vocab_size is not None and size > vocab_size:
        problem = f"id {size - 1} is outside of the model's vocabulary of {vocab_size}"
        raise TokenizerError(file, f"{TOKENS}[{size - 1}]", problem)
    special = {token for token, identity in added.items() if types[identity] != _USER_DEFINED} - NOT_SPECIAL
    special |= {*named.values()}
    entries = [
        AddedToken(token, identity, token in special, False, (Path(file), f"{TOKENS}[{identity}]"))
        for token, identity in added.items()
    ]
    bpe = build(vocab, merges, True, Path(file), _MERGES)
    ends = [*(named[name] for name in ("eot", "eom") if name in named), *(added.keys() & {_END_OF_TEXT})]
    return Tokenizer(
        file,
        bpe,
        size,
        entries,
        holes(ids),
        named.get("eos"),
        bos=named.get("bos"),
        ends=ends,
        adds_bos=adds_bos,
        fim=fim,
    )


def _check_kind(data: Metadata) -> None:
    """Check that the tokenizer is a byte-level BPE."""
    model = data.text(MODEL)
    if model in NO_TOKENIZER:
        found = "is missing" if model is None else f"is {model}"
        raise TokenizerError(data.file, MODEL, f"{found}: the file has no tokenizer")
    if model != "gpt2":
        raise TokenizerError(data.file, MODEL, f"is {model!r}, a tokenizer of another kind; Qwen2's is gpt2")


def _read_tokens(data: Metadata) -> tuple[list[str], list[int]]:
    """Return the tokens and their types."""
    arrays = data.tokens()
    if data.length(_SCORES) not in (None, len(arrays[0])):
        problem = f"has {data.length(_SCORES):,} elements; tokens has {len(arrays[0]):,}"
        raise TokenizerError(data.file, _SCORES, problem)
    tokens, types = (array.tolist() for array in arrays)
    if unknown := set(types) - {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE}:
        place = next(i for i, kind in enumerate(types) if kind in unknown)
        raise TokenizerError(data.file, f"{TYPES}[{place}]", f"is {types[place]}; token types are 1 to 6")
    return tokens, types


def _check_pre(data: Metadata, tokens: Sequence[str]) -> None:
    """Check that the pre-tokenizer is Qwen2's. Any other would cut text at other places, and nothing would show it."""
    pre = data.text(_PRE)
    if pre in _OF_QWEN2:
        return
    found = "is missing" if pre is None else f"is {pre!r}"
    if pre not in _GUESSES or not _is_vocabulary_of_qwen2(tokens):
        found += "" if pre is None else ", an unknown pre-tokenizer"
        raise TokenizerError(data.file, _PRE, f"{found}; Qwen2's are {', '.join(_OF_QWEN2)}")
    problem = f"{found}, but the vocabulary is Qwen2's: its pre-tokenizer is used"
    warnings.warn_explicit(str(TokenizerError(data.file, _PRE, problem)), UserWarning, "qwq_ref", 1, "qwq")


def _is_vocabulary_of_qwen2(tokens: Sequence[str]) -> bool:
    count, wanted = _VOCABULARY
    return hashlib.sha256("\n".join(tokens[:count]).encode()).hexdigest() == wanted


def _read_merges(data: Metadata) -> list[tuple[str, str]]:
    merges = data.strings(_MERGES).tolist()
    # Each merge has a space, and all together have one for each: so each has one. A loop in Python would be slow.
    parts = " ".join(merges).split(" ")
    if "" in parts or len(parts) != 2 * len(merges) or not all(map(contains, merges, repeat(" "))):
        place = next(i for i, merge in enumerate(merges) if merge.count(" ") != 1 or "" in merge.split(" "))
        raise TokenizerError(data.file, f"{_MERGES}[{place}]", "must be two tokens and a space between them")
    if len(set(merges)) < len(merges):
        raise _twice(data, _MERGES, dict(enumerate(merges)))
    return [*zip(parts[::2], parts[1::2], strict=True)]  # the library checks that the parts are tokens


def _divided(data: Metadata, tokens: Sequence[str], types: Sequence[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the vocabulary of the BPE, and the added tokens: token -> id. Padding is in neither."""
    doubtful = (i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _NORMAL or "[" in token)
    padding = {i for i in doubtful if is_padding(i, tokens[i], types[i])}
    vocab = {token: i for i, token in enumerate(tokens) if i not in padding}
    if len(vocab) + len(padding) < len(tokens):
        raise _twice(data, TOKENS, {i: token for i, token in enumerate(tokens) if i not in padding})
    if "" in vocab:
        raise TokenizerError(data.file, f"{TOKENS}[{vocab['']}]", "is empty")
    others = [i for i, kind in enumerate(types) if kind != _NORMAL and i not in padding]
    if len(others) > MOST_ADDED:
        problem = f"marks {len(others):,} added tokens; at most {MOST_ADDED:,} are read"
        raise TokenizerError(data.file, TYPES, problem)
    added = {}
    for i in others:
        if types[i] == _BYTE and tokens[i] not in BYTE_OF:
            problem = f"is {_BYTE}, a byte, but the token is {tokens[i][:40]!r}"
            raise TokenizerError(data.file, f"{TYPES}[{i}]", problem)
        if types[i] != _BYTE:
            added[tokens[i]] = vocab.pop(tokens[i])
    return vocab, added


def _twice(data: Metadata, key: str, texts: Mapping[int, str]) -> TokenizerError:
    """Return the error for an array in which a text appears twice: it would have two ids, or two ranks."""
    seen: dict[str, int] = {}
    place = next(i for i, text in texts.items() if seen.setdefault(text, i) != i)
    return TokenizerError(data.file, f"{key}[{place}]", f"{texts[place][:40]!r} is also element {seen[texts[place]]}")


def _promote(
    vocab: dict[str, int], added: dict[str, int], merges: Sequence[tuple[str, str]], named: Collection[str]
) -> None:
    """Move tokens of the vocabulary that are meant as added tokens, although the file calls them normal.

    These have a role, or are tokens of Qwen's that templates need, and no merges make them. As a part of the vocabulary
    they would never be found in a text.
    """
    meant = {*named, *NOT_SPECIAL, *_TURNS}
    doubtful = sorted(token for token in meant if token in vocab and token not in BYTE_OF)
    if doubtful:
        made = set(map("".join, merges))
        for token in doubtful:
            if token not in made:
                added[token] = vocab.pop(token)
