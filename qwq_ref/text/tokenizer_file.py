"""Read and check a tokenizer.json, and the files beside it: the byte-level BPE of Qwen2.

Everything that decides the meaning of an id is checked: the ids, the pre-tokenizer, and above all the added tokens. The
`tokenizers` library would accept errors there silently.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..files import StrPath, is_gguf, read_json
from ..text_files import TOKENIZER
from .bpe import MOST_ADDED, QWEN2_PATTERN, build, check_alphabet, holes
from .tokenizer import Tokenizer
from .tokenizer_config import AddedToken, TokenizerConfig, check_added, read_tokenizer_config
from .tokenizer_gguf import gguf_tokenizer

_FILE_BYTES = 50_000_000
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


def load_tokenizer(folder_or_file: StrPath, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder with the files beside it: see `tokenizer_config.py`.

    A GGUF file has a tokenizer of its own: see `tokenizer_gguf.py`. It is read from the file, never from a folder.

    vocab_size  the model's vocabulary, that is the rows of its embedding; no id may reach it

    An added token that only tokenizer_config.json or added_tokens.json defines counts as well. A post-processor is not
    applied. Some put a BOS before every text, but chat templates write their own.
    Raises TokenizerError, and CheckpointError for a bad header of a GGUF file.
    """
    path, beside = Path(folder_or_file), None
    if is_gguf(path):
        from ..formats.gguf import read_header  # here, because it imports NumPy

        return gguf_tokenizer(path, read_header(path, whole=False).fields, vocab_size)
    if path.is_dir():
        beside = read_tokenizer_config(path, TokenizerError)
        path /= TOKENIZER
    values = read_json(path, _FILE_BYTES, TokenizerError)
    nfc = _check_pipeline(values, path)
    vocab, merges = _read_model(values.get("model"), path)
    tokens = _read_added(values.get("added_tokens"), path)
    bpe = build(vocab, merges, nfc, path, "model.merges")
    eos = None
    if beside is not None:
        tokens = _marked(_merged(tokens, beside), beside, vocab, bpe)
        eos = beside.named.get("eos_token")
    if len(tokens) > MOST_ADDED:
        raise TokenizerError(path, "added_tokens", f"holds {len(tokens):,} tokens; at most {MOST_ADDED:,} are read")
    ids = _checked_ids(vocab, tokens, vocab_size, path)
    return Tokenizer(path, bpe, max(ids) + 1, tokens, holes(ids), eos)


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
    check_alphabet(vocab, path, "model.vocab")
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


def _read_added(entries: Any, path: Path) -> list[AddedToken]:
    if not isinstance(entries, list):
        raise TokenizerError(path, "added_tokens", "must be a list")
    tokens: dict[str, AddedToken] = {}
    for number, entry in enumerate(entries):
        field = f"added_tokens[{number}]"
        content = check_added(entry, path, field, TokenizerError, complete=True)
        if content in tokens:
            raise TokenizerError(path, f"{field}.content", f"{content!r} appears twice")
        _check_types({content: entry.get("id")}, path, "added_tokens")
        where = (path, f"added_tokens[{content!r}]")
        tokens[content] = AddedToken(content, entry["id"], entry["special"], entry["normalized"], where)
    return [*tokens.values()]


def _merged(tokens: list[AddedToken], beside: TokenizerConfig) -> list[AddedToken]:
    """Add the tokens of the files beside tokenizer.json. A token has one id in all files, and an id has one token."""
    merged = {token.content: token for token in tokens}
    for token in beside.tokens:
        _check_clash(token, merged.setdefault(token.content, token))
        if beside.leads:
            merged[token.content] = token
    owners = {token.identity: token for token in merged.values()}
    for token in beside.older:
        _check_clash(token, merged.get(token.content))
        _check_clash(token, owners.get(token.identity))
    return [*merged.values()]


def _check_clash(token: AddedToken, other: AddedToken | None) -> None:
    """Raise TokenizerError if two files give a token two ids, or an id two tokens."""
    if other is None or (other.content, other.identity) == (token.content, token.identity):
        return
    problem = f"{token.content!r} has id {token.identity}; {other.where[0].name} says {other.identity}"
    if other.identity == token.identity:
        problem = f"id {token.identity} is also that of {other.content!r} in {other.where[0].name}"
    raise TokenizerError(*token.where, problem)


def _marked(tokens: list[AddedToken], beside: TokenizerConfig, vocab: dict[str, int], bpe: Any) -> list[AddedToken]:
    """Mark the special tokens that the configuration names, as Hugging Face does.

    A token of the vocabulary that no merges make can only be meant as an added token, and becomes one.
    """
    marked = [dataclasses.replace(token, special=token.special or token.content in beside.special) for token in tokens]
    for content in sorted(beside.special - {token.content for token in tokens}):
        identity = vocab.get(content)
        if identity is not None and bpe.encode(content, add_special_tokens=False).ids != [identity]:
            where = (beside.file, repr(content))
            marked.append(AddedToken(content, identity, special=True, normalized=False, where=where))
    return marked


def _check_types(ids: dict[str, Any], path: Path, field: str) -> None:
    for token, identity in ids.items():
        if type(identity) is not int or identity < 0:  # to isinstance, true is an int
            raise TokenizerError(path, f"{field}[{token!r}]", "id must be a non-negative integer")


def _checked_ids(vocab: dict[str, int], tokens: list[AddedToken], vocab_size: int | None, path: Path) -> list[int]:
    """Return the ids of all tokens. Check that each is the id of one token, and is one of the model's."""
    where = {token.content: token.where for token in tokens}
    for token in tokens:
        if vocab.get(token.content, token.identity) != token.identity:
            named = "model.vocab" if token.where[0] == path else f"model.vocab of {path.name}"
            problem = f"has id {token.identity}; {named} says {vocab[token.content]}"
            raise TokenizerError(*token.where, problem)
    ids = vocab | {token.content: token.identity for token in tokens}
    last = max(ids, key=ids.__getitem__)
    if vocab_size is not None and ids[last] >= vocab_size:
        problem = f"id {ids[last]} is outside of the model's vocabulary of {vocab_size}"
        raise TokenizerError(*where.get(last, (path, f"model.vocab[{last!r}]")), problem)
    taken = [*ids.values()]
    if len(set(taken)) != len(taken):
        seen: dict[int, str] = {}
        for content, identity in ids.items():
            if (other := seen.setdefault(identity, content)) != content:
                place = where.get(content, (path, f"model.vocab[{content!r}]"))
                file, _ = where.get(other, (path, None))
                named = repr(other) if file == place[0] else f"{other!r} in {file.name}"
                raise TokenizerError(*place, f"id {identity} is also that of {named}")
    return taken
