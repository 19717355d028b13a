"""The tokenizer of a model's folder, if there is one: a model without it computes logits of token ids."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import TokenizerError
from ..text import Tokenizer, load_tokenizer
from ..text_files import TOKENIZER


def find_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """Read a folder's tokenizer, as `load_tokenizer` does; None if the folder has none. Raises TokenizerError."""
    return load_tokenizer(folder, vocab_size) if os.path.lexists(folder / TOKENIZER) else None


def no_tokenizer(path: Path) -> TokenizerError:
    """Return the error of a model that text is asked of. `path` is its folder, or a file in it."""
    file = (path if path.is_dir() else path.parent) / TOKENIZER
    return TokenizerError(file, None, "is missing: without it, the model computes logits of token ids, and has no text")
