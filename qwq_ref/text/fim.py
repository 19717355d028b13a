"""Fill-in-the-middle: prompts from the text before a gap and the text after it, as Qwen2.5-Coder publishes them.

    <|fim_prefix|>BEFORE<|fim_suffix|>AFTER<|fim_middle|>

The model goes on with the text of the gap. Any token of this kind ends it, and so does <|endoftext|>.
"""

from __future__ import annotations

from ..errors import UsageError
from .tokenizer import Tokenizer

_END_OF_TEXT = "<|endoftext|>"


def fim_ids(tokenizer: Tokenizer, before: str, after: str) -> list[int]:
    """Return the ids of a prompt. Both texts are plain: an added token in them is characters.

    Raises UsageError for a model without the three tokens, and TokenizerError for a lone surrogate.
    """
    missing = [role for role in ("prefix", "suffix", "middle") if role not in tokenizer.fim]
    if missing:
        problem = f"this model has no token for the {missing[0]} of a gap, such as <|fim_{missing[0]}|>"
        raise UsageError(None, "suffix", problem)
    prefix, suffix, middle = (tokenizer.fim[role] for role in ("prefix", "suffix", "middle"))
    ids = [prefix, *tokenizer.encode(before), suffix, *tokenizer.encode(after), middle]
    return tokenizer.begin(ids)


def fim_ends(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end the text of a gap, beside those that end any answer."""
    end_of_text = tokenizer.added.get(_END_OF_TEXT)
    return [*tokenizer.fim.values(), *(() if end_of_text is None else (end_of_text,))]


def read_gap(tokenizer: Tokenizer, text: str) -> tuple[str, str] | None:
    """Return the texts before and after a gap from a prompt that spells the three tokens, as editors write it.

    None for any other text: where a token comes twice, or not at its place, nothing says where the gap is.
    """
    names = {identity: name for name, identity in tokenizer.added.items()}
    if any(role not in tokenizer.fim for role in ("prefix", "suffix", "middle")):
        return None
    prefix, suffix, middle = (names[tokenizer.fim[role]] for role in ("prefix", "suffix", "middle"))
    if any(text.count(name) != 1 for name in (prefix, suffix, middle)):
        return None
    if not (text.startswith(prefix) and text.endswith(middle)):
        return None
    before, found, after = text[len(prefix) : -len(middle)].partition(suffix)
    return (before, after) if found else None
