"""The definitions in a program that a model wrote: without its examples and tests."""

from __future__ import annotations

import ast
import warnings

_KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_TRIES = 400  # lines at the end that may be left out
_LONGEST = 1 << 16  # characters; compiling takes time and memory that grow with the length


def definitions(text: str) -> str:
    """Return the imports, functions, classes and assignments at the top level of a program.

    A model likes to go on with examples, and with tests of its own: a wrong one would fail a correct function. EvalPlus
    leaves them out of the programs that it measures, too. Of a text that is no whole program, the longest beginning
    that is one counts: a limit may have cut it off. A text without any stays as it is.
    """
    lines = text[:_LONGEST].splitlines()
    for end in range(len(lines), max(0, len(lines) - _TRIES), -1):
        tree = _parsed("\n".join(lines[:end]))
        if tree is not None:
            kept = [node for node in tree.body if isinstance(node, _KEPT)]
            return "\n\n".join("\n".join(_lines(lines, node)) for node in kept) if kept else text
    return text


def _lines(lines: list[str], node: ast.stmt) -> list[str]:
    decorated = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(each.lineno for each in decorated)])
    return lines[first - 1 : node.end_lineno]


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of strings with unknown escapes
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
