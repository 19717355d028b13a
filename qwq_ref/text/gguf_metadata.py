"""The fields `tokenizer.*` of a GGUF file, each checked for its type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import QwqError
from ..files import StrPath

PREFIX = "tokenizer.ggml."
MODEL, TOKENS, TYPES = (f"{PREFIX}{name}" for name in ("model", "tokens", "token_type"))
NO_TOKENIZER = (None, "none", "no_vocab")  # values of `MODEL` for a file without a tokenizer
UNUSED = 5  # the type of padding
# The name of a role in the metadata -> the name that templates know. "seperator" is spelled so in the format.
ROLES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "eot": "eot_token",
    "eom": "eom_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "seperator": "sep_token",
    "cls": "cls_token",
    "mask": "mask_token",
}
# Roles in filling a gap -> their names in the metadata; the second ones are of older files.
_FIM = {
    "prefix": ("fim_pre", "prefix"),
    "suffix": ("fim_suf", "suffix"),
    "middle": ("fim_mid", "middle"),
    "pad": ("fim_pad",),
    "repository": ("fim_rep",),
    "file": ("fim_sep",),
}
_STRINGS = ("string",)
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Metadata:
    """The fields of the header of one GGUF file, as `formats.gguf.read_header` gives them.

    error  what a wrong field raises
    """

    file: StrPath
    fields: Mapping[str, Any]
    error: type[QwqError]

    def text(self, key: str) -> str | None:
        """Return a string; None if there is none."""
        value = self.fields.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(self.file, key, "must be a text")
        return value

    def flag(self, key: str) -> bool:
        """Return a bool; False if there is none."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            raise self.error(self.file, key, "must be true or false")
        return value

    def strings(self, key: str) -> Any:
        """Return an array of strings, as `formats.gguf` has it. `tolist` makes Python strings of all."""
        return self._array(key, "strings", _STRINGS)

    def integers(self, key: str) -> Any:
        """Return an array of integers, as `formats.gguf` has it."""
        return self._array(key, "integers", _INTEGERS)

    def tokens(self) -> tuple[Any, Any]:
        """Return the array of tokens and the array of their types."""
        tokens, types = self.strings(TOKENS), self.integers(TYPES)
        if len(types) != len(tokens):
            raise self.error(self.file, TYPES, f"has {len(types):,} elements; tokens has {len(tokens):,}")
        return tokens, types

    def length(self, key: str) -> int | None:
        """Return the number of elements of an array; None if there is none."""
        return len(self._array(key)) if key in self.fields else None

    def named(self, tokens: Sequence[str], types: Sequence[int]) -> dict[str, str]:
        """Return the tokens with a role: "bos" -> "<s>". Padding has none."""
        return self._with_roles(ROLES, tokens, types)

    def fim(self, tokens: Sequence[str], types: Sequence[int]) -> dict[str, str]:
        """Return the tokens with a role in filling a gap: see `tokenizer.FIM`."""
        keys = {key: role for role, names in _FIM.items() for key in reversed(names)}
        return {keys[key]: token for key, token in self._with_roles(keys, tokens, types).items()}

    def _with_roles(self, names: Iterable[str], tokens: Sequence[str], types: Sequence[int]) -> dict[str, str]:
        named = {}
        for name in names:
            key = f"{PREFIX}{name}_token_id"
            identity = self.fields.get(key)
            if identity is None:
                continue
            if type(identity) is not int or identity < 0:  # to isinstance, true is an int
                raise self.error(self.file, key, "must be a token id")
            if identity >= len(tokens):
                raise self.error(self.file, key, f"is {identity}; the file has {len(tokens):,} tokens")
            if not is_padding(identity, tokens[identity], types[identity]):
                named[name] = tokens[identity]
        return named

    def _array(self, key: str, what: str = "values", types: Collection[str] = ()) -> Any:
        value = self.fields.get(key)
        if value is None:
            raise self.error(self.file, key, "is missing")
        found = getattr(value, "type", type(value).__name__)
        if isinstance(value, str | int | float) or (types and found not in types):
            raise self.error(self.file, key, f"must be an array of {what}, got {found}")
        return value


def is_padding(identity: int, token: str, kind: int) -> bool:
    """Return whether a token only fills a row of the embedding. Older converters gave such tokens other types."""
    return kind == UNUSED or (token.startswith("[PAD") and token == f"[PAD{identity}]")
