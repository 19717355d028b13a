"""The fields `tokenizer.*` of a GGUF file, each checked for its type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import QwqError
from ..files import StrPath, open_regular

PREFIX = "tokenizer.ggml."
MODEL = f"{PREFIX}model"
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
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def is_gguf(path: Path) -> bool:
    """Return whether a path is meant as a GGUF file: by its name, or by its first bytes if it has another name."""
    if path.suffix == ".gguf":
        return not path.is_dir()
    try:
        descriptor = open_regular(path, QwqError)
    except QwqError:
        return False
    try:
        return os.pread(descriptor, 4, 0) == b"GGUF"
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Metadata:
    """The fields of the header of one GGUF file, as `formats.gguf.read_header` gives them.

    error  what a wrong field raises; an array that is not UTF-8, or not one of strings, raises CheckpointError
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

    def strings(self, key: str) -> list[str]:
        """Return the elements of an array of strings."""
        strings: list[str] = self._array(key, "an array of strings").strings()
        return strings

    def integers(self, key: str) -> list[int]:
        """Return the elements of an array of integers."""
        values = self._array(key, "an array of integers")
        if values.type not in _INTEGERS:
            raise self.error(self.file, key, f"must be an array of integers, got {values.type}")
        integers: list[int] = values.tolist()
        return integers

    def length(self, key: str) -> int | None:
        """Return the number of elements of an array; None if there is none."""
        return len(self._array(key, "an array")) if key in self.fields else None

    def role(self, name: str, tokens: int) -> int | None:
        """Return the id of the token with a role, such as "bos"; None if no token has it.

        tokens  the number of tokens in the file
        """
        key = f"{PREFIX}{name}_token_id"
        identity = self.fields.get(key)
        if identity is None:
            return None
        if type(identity) is not int or identity < 0:  # to isinstance, true is an int
            raise self.error(self.file, key, "must be a token id")
        if identity >= tokens:
            raise self.error(self.file, key, f"is {identity}; the file has {tokens:,} tokens")
        return identity

    def _array(self, key: str, wanted: str) -> Any:
        value = self.fields.get(key)
        if value is None or isinstance(value, str | int | float):
            raise self.error(self.file, key, f"must be {wanted}" if key in self.fields else "is missing")
        return value
