"""The tokenizer of a model's folder or file, if there is one: a model without it computes logits of token ids."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..files import is_gguf
from ..formats.gguf import read_header
from ..text import Tokenizer, gguf_tokenizer, load_tokenizer
from ..text.gguf_metadata import MODEL, NO_TOKENIZER
from ..text_files import TOKENIZER


def metadata_of(path: Path) -> Mapping[str, Any] | None:
    """Return the fields of the header of a GGUF file; None for a folder. Raises CheckpointError."""
    return read_header(path, whole=False).fields if is_gguf(path) else None


def find_tokenizer(path: Path, vocab_size: int, fields: Mapping[str, Any] | None = None) -> Tokenizer | None:
    """Read the tokenizer of a folder or of a GGUF file; None if it has none. Raises a QwqError as `load_tokenizer`.

    fields  of the header of the GGUF file, for a caller that has read it
    """
    fields = fields if fields is not None else metadata_of(path)
    if fields is not None:
        return None if fields.get(MODEL) in NO_TOKENIZER else gguf_tokenizer(path, fields, vocab_size)
    return load_tokenizer(path, vocab_size) if os.path.lexists(path / TOKENIZER) else None


def no_tokenizer(path: Path) -> TokenizerError:
    """Return the error of a model that text is asked of. `path` is its folder, its GGUF file, or a file in a folder."""
    problem = "is missing: without it, the model computes logits of token ids, and has no text"
    if is_gguf(path):
        return TokenizerError(path, MODEL, problem)
    return TokenizerError((path if path.is_dir() else path.parent) / TOKENIZER, None, problem)
