"""From `response_format`, `tools` and `tool_choice`, as OpenAI's clients send them, to a grammar of the answer."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError, did_you_mean
from ...text.tools import CALL, END

_MOST = 1 << 20  # characters of a grammar
_NAME = re.compile(r"[\w.-]{1,64}")
# Between the parts of a value: nothing, a blank, or a line end and an indent. Without a limit, some models never leave.
_SPACE = r" |\n {0,16}"
_CALLS = 16  # in one answer; some models never end a list
_KINDS = ("text", "json_object", "json_schema", "regex", "grammar")


@dataclass(frozen=True)
class Grammar:
    """A grammar of an answer, as llguidance reads it.

    source  the whole grammar
    parts   (field, grammar): parts of it, each with the field of the request that it comes from
    """

    source: str
    parts: tuple[tuple[str, str], ...]


def require() -> str:
    """Return the folder of the package llguidance. Raises UsageError without it."""
    spec = importlib.util.find_spec("llguidance")
    if spec is None or spec.origin is None:
        problem = "needs the package llguidance, which is not installed: pip install 'qwq_ref[grammar]'"
        raise UsageError(None, "response_format", problem)
    return str(Path(spec.origin).absolute().parent.parent)


def grammar_of(
    response_format: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] = "auto",
    parallel_tool_calls: bool = True,
) -> Grammar | None:
    """Return the grammar that a request sets for its answer; None for free text.

    response_format      {"type": "text"}, {"type": "json_object"},
                         {"type": "json_schema", "json_schema": {"schema": ..., "strict": ...}},
                         {"type": "regex", "regex": ...} or {"type": "grammar", "grammar": ...}: GBNF or Lark
    tools                functions: {"type": "function", "function": {"name": ..., "parameters": ...}}
    tool_choice          "auto": a call or an answer; "none"; "required": calls; {"function": {"name": ...}}: one call
    parallel_tool_calls  whether there may be several calls, up to 16

    With `strict`, a keyword of JSON schema that cannot be enforced is an error. Without it, such a keyword counts
    nothing. Raises UsageError, which names the field. `check` looks at the schemas themselves.
    """
    functions = _functions(tools)
    called = _called(tool_choice, functions)
    answer = _answer(response_format)
    if not called or (tool_choice == "auto" and answer is None):
        return answer
    if tool_choice == "auto" and answer is not None and not answer.source.startswith("start: %json"):
        raise UsageError(None, "response_format", "must be a JSON schema to go together with tools")
    parts = [(field, _start(schema)) for field, schema in called.values()]
    calls = " | ".join(f"call_{number}" for number in range(len(called)))
    several = parallel_tool_calls and isinstance(tool_choice, str)
    more = f' ("\\n" call){{0,{_CALLS - 1}}}' if several else ""
    rules = [f"calls: call{more}", f"call: {calls}"]
    for number, (name, (_, schema)) in enumerate(called.items()):
        head = json.dumps(f'{CALL}\n{{"name": "{name}", "arguments": ', ensure_ascii=False)
        rules.append(f'call_{number}: {head} %json {schema} "}}\\n{END}"')
    if tool_choice == "auto" and answer is not None:
        parts += answer.parts
        rules = ["start: calls | answer", answer.source.replace("start:", "answer:", 1), *rules]
    else:
        rules.insert(0, "start: calls")
    return Grammar(_short("\n".join(rules), "tools"), tuple(parts))


def _start(schema: str) -> str:
    return f"start: %json {schema}"


def _answer(wanted: Any) -> Grammar | None:
    """Return the grammar of an answer without calls."""
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if not isinstance(wanted, Mapping) or kind not in _KINDS:
        raise UsageError(None, "response_format.type", f"must be one of {', '.join(_KINDS)}")
    if kind == "text":
        return None
    if kind in ("json_object", "json_schema"):
        field = "response_format"
        schema: Any = {"type": "object"}
        strict = True
        if kind == "json_schema":
            inner = wanted.get("json_schema")
            field = "response_format.json_schema"
            if not isinstance(inner, Mapping) or "schema" not in inner:
                raise UsageError(None, field, "must be an object with a schema")
            schema, strict = inner["schema"], _flag(inner.get("strict"), f"{field}.strict")
            field += ".schema"
        source = _start(_schema(schema, field, strict))
        return Grammar(source, ((field, source),))
    field = f"response_format.{kind}"
    text = wanted.get(kind)
    if not isinstance(text, str) or not text.strip():
        raise UsageError(None, field, "must be a text that is not empty")
    if re.search("[\ud800-\udfff]", text):
        raise UsageError(None, field, "holds a lone surrogate, which is no text")
    source = (_regex if kind == "regex" else _lark)(_short(text, field), field)
    return Grammar(source, ((field, source),))


def _regex(text: str, field: str) -> str:
    require()
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(text)


def _lark(text: str, field: str) -> str:
    require()
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark: str = any_to_lark(text)
    except Exception as problem:  # the converter raises what its own parsing raises
        raise UsageError(None, field, str(problem) or "cannot be read") from None
    return lark


def _functions(tools: Any) -> dict[str, tuple[str, str]]:
    """Return {name: (field, schema of the arguments)}."""
    found: dict[str, tuple[str, str]] = {}
    if tools is not None and (isinstance(tools, str | Mapping) or not isinstance(tools, Sequence)):
        raise UsageError(None, "tools", "must be a list of objects")
    for number, tool in enumerate(tools or ()):
        field = f"tools[{number}]"
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise UsageError(None, field, "must be an object with a function")
        field += ".function" if "function" in tool else ""
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(None, f"{field}.name", "must be 1 to 64 letters, digits, dots, hyphens and underscores")
        if name in found:
            raise UsageError(None, f"{field}.name", f"is {name}, as that of another function")
        none = {"type": "object", "properties": {}, "additionalProperties": False}
        schema = function.get("parameters")
        strict = _flag(function.get("strict"), f"{field}.strict")
        field += ".parameters"
        if schema is not None and not isinstance(schema, Mapping):
            raise UsageError(None, field, "must be an object")
        schema = none if not schema else {"type": "object", **schema}
        found[name] = field, _schema(schema, field, strict)
    return found


def _called(choice: Any, functions: Mapping[str, tuple[str, str]]) -> Mapping[str, tuple[str, str]]:
    """Return the functions that may be called."""
    if choice in ("auto", "none"):
        return {} if choice == "none" else functions
    if choice == "required":
        if not functions:
            raise UsageError(None, "tool_choice", "needs tools to choose from")
        return functions
    inner = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise UsageError(None, "tool_choice", "must be auto, none, required, or an object that names a function")
    if name not in functions:
        raise UsageError(None, "tool_choice", f"names {name:.64}, which is no tool{did_you_mean(name, functions)}")
    return {name: functions[name]}


def _flag(value: Any, field: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise UsageError(None, field, "must be true or false")
    return bool(value)


def _schema(schema: Any, field: str, strict: bool) -> str:
    """Return a schema as JSON text, with the options of llguidance."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise UsageError(None, field, "is false, which no value fits" if schema is False else "must be an object")
    options = {"whitespace_pattern": _SPACE, "lenient": not strict, "coerce_one_of": not strict}
    try:
        text = json.dumps({**schema, "x-guidance": options}, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise UsageError(None, field, f"is no JSON ({problem})") from None
    except RecursionError:
        raise UsageError(None, field, "is nested too deeply") from None
    return _short(text, field)


def _short(text: str, field: str) -> str:
    if len(text) > _MOST:
        raise UsageError(None, field, f"makes a grammar of {len(text):,} characters; at most {_MOST:,} are read")
    return text
