"""The byte-level BPE of Qwen2, from the parts that tokenizer.json and GGUF files share.

The `tokenizers` library does the merging.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from .tokenizer import BYTE_OF

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Added tokens that tokenizer.json of QwQ and of R1-Distill does not call special: `decode` shows them.
NOT_SPECIAL = frozenset(
    (
        *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
        *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        *("<｜User｜>", "<｜Assistant｜>", "<|EOT|>"),
    )
)

MOST_ADDED = 1 << 14  # published tokenizers have up to a few thousand; to compile a pattern of them all takes time


def build(vocab: dict[str, int], merges: list[tuple[str, str]], nfc: bool, path: Path, field: str) -> Any:
    """Build the library's tokenizer of checked parts, without added tokens.

    nfc    whether text is put in NFC
    field  the name of the merges in the file, for messages

    Raises TokenizerError for a merge whose parts or result are no tokens.
    """
    import tokenizers  # here, because it takes long and not every command needs it
    from tokenizers import models, normalizers, pre_tokenizers

    try:
        bpe = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as problem:  # the library raises Exception itself, for one for a merge of unknown parts
        raise TokenizerError(path, field, f"cannot be used ({problem})") from None
    if nfc:
        bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return bpe


def check_alphabet(vocab: Collection[str], path: Path, field: str) -> None:
    """Check that each byte has a token, and that tokens consist of bytes."""
    # The library would silently drop a byte that has no token.
    if missing := BYTE_OF.keys() - vocab:
        raise TokenizerError(path, field, f"has no token for byte {min(BYTE_OF[char] for char in missing)}")
    if strange := set("".join(vocab)) - BYTE_OF.keys():
        raise TokenizerError(path, field, f"holds {min(strange)!r}, which stands for no byte")


def holes(ids: Iterable[int]) -> tuple[range, ...]:
    """Return the ranges of ids below the last that are not among these different ids."""
    taken = sorted(ids)
    if taken[-1] == len(taken) - 1:
        return ()
    starts = zip([-1, *taken], taken, strict=False)
    return tuple(range(before + 1, identity) for before, identity in starts if identity > before + 1)
