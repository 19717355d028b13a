"""The files beside tokenizer.json: they name the special tokens, and may hold added tokens and chat templates.

Newer models keep everything in tokenizer_config.json. Older ones have added_tokens.json and special_tokens_map.json
as well. As in Hugging Face, these two count only if tokenizer_config.json has no `added_tokens_decoder`. Even then,
added_tokens.json must not give other ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import QwqError
from ..files import StrPath, read_json
from ..text_files import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER_CONFIG

_BYTES = 1 << 22
# Hugging Face's class of Qwen2 tokenizers has these where the files say nothing. An explicit null means none.
_OF_THE_CLASS = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
_FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token that text can spell: `normalized` ones are looked for in normalised text, `special` ones are not shown.

    where  the file and the field that define it, for messages
    """

    content: str
    identity: int
    special: bool
    normalized: bool
    where: tuple[Path, str]


@dataclass(frozen=True)
class TokenizerConfig:
    """The contents of the files beside a tokenizer.json. All fields are empty if there are none.

    file     tokenizer_config.json
    values   its contents
    tokens   added tokens
    older    added tokens of added_tokens.json, where the file does not count
    leads    whether `tokens` have the right flags, where tokenizer.json says otherwise
    named    such as eos_token -> "<|im_end|>"; templates can use these names
    special  the contents of tokens that are special, whatever the token's own entry says
    """

    file: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[AddedToken, ...] = ()
    older: tuple[AddedToken, ...] = ()
    leads: bool = False
    named: Mapping[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()


def read_tokenizer_config(folder: StrPath, error: type[QwqError]) -> TokenizerConfig:
    """Read the files beside the tokenizer.json of a folder. Raises `error`."""
    file = Path(folder, TOKENIZER_CONFIG)
    values = _read(file, error)
    leads = values.get("added_tokens_decoder") is not None
    names = dict(values)
    if not leads:
        names |= _read(Path(folder, SPECIAL_TOKENS), error)
    extra = [names.get(name) for name in ("extra_special_tokens", "additional_special_tokens")]
    named = {**_OF_THE_CLASS}
    for name, value in [*names.items(), *(item for more in extra if isinstance(more, dict) for item in more.items())]:
        if name in _OF_THE_CLASS or name.endswith("_token"):
            named.pop(name, None)
            if (content := _content(value)) is not None:
                named[name] = _text(content, file, name, error)
    listed = [_content(item) for more in extra if isinstance(more, list) for item in more]
    special = frozenset([*named.values(), *(content for content in listed if content is not None)])
    tokens = older = _older(folder, special, error)
    if leads:
        tokens = _decoder(values["added_tokens_decoder"], file, error)
    return TokenizerConfig(file, values, tuple(tokens), tuple(older) if leads else (), leads, named, special)


def check_added(entry: Any, file: Path, where: str, error: type[QwqError], *, complete: bool) -> str:
    """Return the content of an entry with an added token, whose flags must be ones that we keep to.

    complete  whether every flag must be there; else an absent one is false
    """
    if not isinstance(entry, dict) or not isinstance(content := entry.get("content"), str) or not content:
        raise error(file, f"{where}.content", "must be a non-empty string")
    _text(content, file, f"{where}.content", error)
    for flag in _FLAGS:
        if entry.get(flag, None if complete else False) is not False:
            raise error(file, f"{where}.{flag}", "must be false: tokens match exactly as they are written")
    for flag in ("normalized", "special"):
        if not isinstance(entry.get(flag, None if complete else False), bool):
            raise error(file, f"{where}.{flag}", "must be true or false")
    return content


def _text(content: str, file: Path, where: str, error: type[QwqError]) -> str:
    if any("\ud800" <= char <= "\udfff" for char in content):
        raise error(file, where, "holds a lone surrogate, which is not text")
    return content


def _read(file: Path, error: type[QwqError]) -> dict[str, Any]:
    return read_json(file, _BYTES, error) if os.path.lexists(file) else {}


def _content(value: Any) -> str | None:
    """Return the text of a token, which is a string or an object around one."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _decoder(entries: Any, file: Path, error: type[QwqError]) -> list[AddedToken]:
    """Read `added_tokens_decoder`: id as a string -> an object with content and flags."""
    if not isinstance(entries, dict):
        raise error(file, "added_tokens_decoder", "must be an object of ids and tokens")
    tokens = []
    for key, entry in entries.items():
        where = f"added_tokens_decoder[{key!r}]"
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise error(file, where, "must be named by a token id")
        content = check_added(entry, file, where, error, complete=False)
        special = entry.get("special", False)
        tokens.append(AddedToken(content, int(key), special, entry.get("normalized", not special), (file, where)))
    return tokens


def _older(folder: StrPath, special: frozenset[str], error: type[QwqError]) -> list[AddedToken]:
    """Read added_tokens.json: token -> id."""
    file = Path(folder, ADDED_TOKENS)
    tokens = []
    for content, identity in _read(file, error).items():
        entry = {"content": content}
        check_added(entry, file, repr(content), error, complete=False)
        if type(identity) is not int or identity < 0:  # to isinstance, true is an int
            raise error(file, repr(content), "id must be a non-negative integer")
        is_special = content in special
        tokens.append(AddedToken(content, identity, is_special, not is_special, (file, repr(content))))
    return tokens
