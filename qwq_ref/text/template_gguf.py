"""The chat templates in the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import TemplateError
from ..files import StrPath
from ..text_files import DEFAULT, TOOL_USE
from .gguf_metadata import MODEL, NO_TOKENIZER, ROLES, TOKENS, Metadata

_TEMPLATE, _NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"


def gguf_templates(file: StrPath, fields: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the templates that count, by their names "default" and "tool_use": the text, and the field that holds it.

    fields  `fields` of the header: see `formats.gguf.read_header`

    Raises TemplateError.
    """
    data = Metadata(file, fields, TemplateError)
    keys = {DEFAULT: f"{_TEMPLATE}.{DEFAULT}", TOOL_USE: f"{_TEMPLATE}.{TOOL_USE}"}
    if _TEMPLATE in fields:
        keys[DEFAULT] = _TEMPLATE
    found = {name: (text, key) for name, key in keys.items() if (text := data.text(key)) is not None}
    if _NAMES in fields and TOOL_USE not in found and TOOL_USE in data.strings(_NAMES):
        raise TemplateError(file, keys[TOOL_USE], f"is missing, although {_NAMES} names it")
    if found and DEFAULT not in found:
        raise TemplateError(file, _TEMPLATE, f"is missing beside {keys[TOOL_USE]}")
    return found


def gguf_variables(file: StrPath, fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that the tokenizer lends to templates: such as bos_token -> "<s>". Raises TemplateError."""
    if TOKENS not in fields or fields.get(MODEL) in NO_TOKENIZER:
        return {}
    data = Metadata(file, fields, TemplateError)
    return {ROLES[name]: token for name, token in data.named(*data.tokens()).items()}
