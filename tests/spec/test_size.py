"""The pages claim a size for the model: it must be true."""

import ast
import io
import re
import tokenize

import pytest

from tests.support.paths import DOCS, PACKAGE, ROOT

MODEL = ("ops.py", "block.py", "model.py")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source):
    """The number of lines with code: without blank lines, comments and docstrings."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {line for t in tokens if t.type not in NO_CODE for line in range(t.start[0], t.end[0] + 1)}
    return len(code - docstrings)


def test_counting():
    lines = (
        '"""Doc."""',
        "",
        "x = 1  # comment",
        "# comment",
        "def f():",
        '    """Doc',
        '    more."""',
        "    return (",
        "x)",
    )
    assert code_lines("\n".join(lines)) == 4


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "spec.md"], ids=lambda page: page.name)
def test_the_model_is_as_small_as_the_pages_say(page):
    size = sum(code_lines((PACKAGE / "spec" / name).read_text()) for name in MODEL)
    claims = [int(number) for number in re.findall(r"under (\d+) lines", page.read_text())]
    assert claims or page.name == "README.md"
    assert all(size < number for number in claims), size
