"""The tokenizer and the chat template of a GGUF file as the files that `transformers` reads."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..formats.gguf import read_header
from ..text_files import DEFAULT, TOKENIZER, TOKENIZER_CONFIG
from .gguf_metadata import MODEL, NO_TOKENIZER
from .template_gguf import gguf_templates, gguf_variables
from .tokenizer_gguf import gguf_tokenizer

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def tokenizer_files(path: Path, vocab_size: int) -> dict[str, Callable[[], bytes]]:
    """Return tokenizer.json and tokenizer_config.json of a GGUF file: name -> a function that returns the contents.

    Empty for a file without a tokenizer. Raises TokenizerError, TemplateError, CheckpointError.
    """
    fields = read_header(path, whole=False).fields
    if fields.get(MODEL) in NO_TOKENIZER:
        return {}
    gguf_templates(path, fields)
    return {
        TOKENIZER: functools.partial(_tokenizer, path, vocab_size),
        TOKENIZER_CONFIG: functools.partial(_config, path, vocab_size),
    }


def _tokenizer(path: Path, vocab_size: int) -> bytes:
    tokenizer = gguf_tokenizer(path, read_header(path, whole=False).fields, vocab_size)
    values = json.loads(tokenizer.library_json())
    values["added_tokens"] = [{"id": identity, **entry} for identity, entry in _added(tokenizer)]
    values["decoder"] = _BYTE_LEVEL
    values["post_processor"] = _BYTE_LEVEL
    if tokenizer.adds_bos:
        values["post_processor"] = _with_bos(path, tokenizer)
    return json.dumps(values, ensure_ascii=False).encode()


def _with_bos(path: Path, tokenizer: Any) -> dict[str, Any]:
    """Return the post-processor that puts BOS before a text."""
    token = next((token for token, identity in tokenizer.added.items() if identity == tokenizer.bos), None)
    if token is None:
        raise TokenizerError(path, "tokenizer.ggml.bos_token_id", "is no added token")
    begin, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [tokenizer.bos], "tokens": [token]}},
    }
    return {"type": "Sequence", "processors": [_BYTE_LEVEL, template]}


def _config(path: Path, vocab_size: int) -> bytes:
    fields = read_header(path, whole=False).fields
    tokenizer = gguf_tokenizer(path, fields, vocab_size)
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(identity): entry for identity, entry in _added(tokenizer)},
        "clean_up_tokenization_spaces": False,
        **gguf_variables(path, fields),
    }
    templates = {name: text for name, (text, _) in gguf_templates(path, fields).items()}
    if templates:
        whole = [{"name": name, "template": text} for name, text in templates.items()]
        values["chat_template"] = whole if len(whole) > 1 else templates[DEFAULT]
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


def _added(tokenizer: Any) -> list[tuple[int, dict[str, Any]]]:
    """Return the added tokens by their ids, as tokenizer_config.json describes them."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = sorted((identity, token) for token, identity in tokenizer.added.items())
    return [(i, {"content": token, **flags, "special": i in tokenizer.special}) for i, token in added]
