"""The text of a single token, which may be a part of a character."""

from __future__ import annotations

from ..errors import TokenizerError
from ..text import Tokenizer


def token_text(tokenizer: Tokenizer | None, identity: int) -> str:
    """Return the text of a token. Bytes that are no whole characters become escapes: \\xe4\\xb8.

    An id without text, such as padding of the embedding, or of a model without a tokenizer, becomes #ID.
    """
    if tokenizer is None:
        return f"#{identity}"
    try:
        return tokenizer.token_bytes(identity).decode("utf-8", errors="backslashreplace")
    except TokenizerError:
        return f"#{identity}"
