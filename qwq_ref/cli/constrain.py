"""Options that keep an answer within a grammar: a JSON schema, or a grammar of llama.cpp."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import UsageError
from .streams import argument_text, read_stream
from .text_input import open_input, whole


def add_constrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `response_format` reads."""
    group = parser.add_argument_group("grammar", "The answer keeps to it; the reasoning is free.")
    group.add_argument(
        "-j",
        "--json-schema",
        metavar="SCHEMA",
        help='a JSON schema, or a file with one; \'{"type": "object"}\' stands for any object',
    )
    group.add_argument("--grammar", metavar="TEXT", help="a grammar, in GBNF as for llama.cpp, or in Lark")
    group.add_argument("--grammar-file", metavar="FILE", help="the same, from a file")
    parser.set_defaults(response_format=None)


def response_format(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the form that the options ask for, as `Model.generate` takes it; None without them.

    Raises UsageError for a schema or a grammar that does not compile, and FileError. The option is named.
    """
    given = [dest for dest in ("json_schema", "grammar", "grammar_file") if getattr(options, dest) is not None]
    if not given:
        return None
    if len(given) > 1:
        first = options.flags[given[0]]
        raise UsageError(None, given[1], f"does not go together with {first}")
    dest = given[0]
    value = argument_text(getattr(options, dest), dest)
    if dest == "json_schema":
        inner = {"schema": _schema(value), "strict": True}
        form = {"type": "json_schema", "json_schema": inner}
    else:
        form = {"type": "grammar", "grammar": _file(value) if dest == "grammar_file" else value}
    from ..engine.grammar import check, grammar_of

    try:
        grammar = grammar_of(form)
        assert grammar is not None
        check(grammar)
    except UsageError as problem:
        raise UsageError(None, dest, problem.problem) from None
    return form


def _schema(value: str) -> Any:
    """Return a schema given as JSON, or as the name of a file."""
    named = value.lstrip()[:1] not in ("{", "[", "") and value.strip() not in ("true", "false")
    text = _file(value) if named else value
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        where = (
            f"line {problem.lineno}, column {problem.colno}" if isinstance(problem, json.JSONDecodeError) else "depth"
        )
        raise UsageError(value if named else None, "json_schema", f"is not JSON ({where})") from None


def _file(path: str) -> str:
    with open_input(path) as stream:
        return whole(read_stream(stream, path), path)
