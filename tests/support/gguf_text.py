"""A tokenizer.json and a chat template as fields of a GGUF file."""

import re

from tests.support.gguf_files import BOOL, F32, I32, STRING, U32, array_field, field, whole

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
_LIKE_CONTROL = re.compile(r"<[|｜].*[|｜]>")


def metadata(values, rows=0, **changes):
    """Return the fields that a converter makes of a tokenizer.json: key -> value.

    It marks a token that looks like a control token as one, whatever its flag says. Each of `rows` of the embedding has
    a token; the last ones are padding. A change to None removes a field. The name of a change has `__` for each dot.
    """
    vocab = values["model"]["vocab"]
    tokens, types = dict(zip(vocab.values(), vocab, strict=True)), dict.fromkeys(vocab.values(), NORMAL)
    for entry in values["added_tokens"]:
        control = entry["special"] or _LIKE_CONTROL.fullmatch(entry["content"])
        tokens[entry["id"]], types[entry["id"]] = entry["content"], CONTROL if control else USER_DEFINED
    ids = range(max(rows, max(tokens) + 1))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    fields = {
        "general.architecture": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        TOKENS: [tokens.get(i, f"[PAD{i}]") for i in ids],
        TYPES: [types.get(i, UNUSED) for i in ids],
        MERGES: merges,
    }
    named = {f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {key: value for key, value in (fields | named).items() if value is not None}


def encoded(key, value):
    """Return one field in bytes, of the type that converters give to such a value."""
    if isinstance(value, list):
        kind = {str: STRING, bytes: STRING, float: F32}.get(type(value[0]) if value else str, I32)
        return array_field(key, kind, value)
    kind = {str: STRING, bytes: STRING, bool: BOOL, float: F32}.get(type(value), U32)
    return field(key, kind, value)


def write(path, fields):
    path.write_bytes(whole([encoded(key, value) for key, value in fields.items()]))
    return path


def same_tokenizer(found, wanted):
    """All that a tokenizer tells of itself; the roles of tokens are not in every tokenizer.json."""
    for name in ("size", "holes", "added", "special", "think_start", "think_end", "has_normalized", "spellings"):
        assert getattr(found, name) == getattr(wanted, name), name
    for identity in range(wanted.size):
        if not any(identity in hole for hole in wanted.holes):
            assert found.token_bytes(identity) == wanted.token_bytes(identity)
