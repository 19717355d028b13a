"""The names of the files from which text and ids are made: `text` reads them, and `formats` downloads them."""

from __future__ import annotations

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
OLD_TEMPLATE = "chat_template.json"
DEFAULT, TOOL_USE = "default", "tool_use"  # the names of the two templates that count

MORE_TEMPLATES = {name: f"additional_chat_templates/{name}.jinja" for name in (DEFAULT, TOOL_USE)}
FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    TEMPLATE,
    OLD_TEMPLATE,
    *MORE_TEMPLATES.values(),
)
