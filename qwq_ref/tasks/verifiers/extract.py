"""The program in a completion: the block that a model fences, or what is left of it."""

from __future__ import annotations

import re
from typing import NamedTuple

_FENCE = re.compile(r"^ {0,3}(?P<marks>`{3,}|~{3,}) *(?P<info>[^`]*)$")
_PYTHON = {"python", "py", "python3"}
_END_OF_REASONING = "</think>"


class _Block(NamedTuple):
    language: str
    text: str
    closed: bool


def answer(completion: str) -> str:
    """Return the text after the last </think>: all of it without one, and none if reasoning opens and never ends."""
    _, end, after = completion.rpartition(_END_OF_REASONING)
    if end:
        return after
    return "" if completion.lstrip().startswith("<think>") else completion


def extract_code(completion: str, defines: str = "") -> str:
    """Return the program in a completion: the last block marked as Python, after </think>.

    defines  a function: blocks that define it come before others. Models like to end with an example of its use

    Without a block for Python, the last one without a language counts, and then the last one of any. Without a closed
    block, one that is cut off counts, and without any fence, the whole answer.
    """
    text = answer(completion)
    blocks = _blocks(text)
    if not blocks:
        return text
    definition = re.compile(rf"^\s*(async\s+)?def\s+{re.escape(defines)}\b", re.MULTILINE)

    def rank(numbered: tuple[int, _Block]) -> tuple[bool, bool, int, int]:
        number, block = numbered
        kind = 2 if block.language in _PYTHON else 1 if not block.language else 0
        return bool(defines.isidentifier() and definition.search(block.text)), block.closed, kind, number

    return max(enumerate(blocks), key=rank)[1].text


def _blocks(text: str) -> list[_Block]:
    found: list[_Block] = []
    lines: list[str] = []
    marks, language = "", ""
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if not marks:
            if fence:
                marks, language, lines = fence["marks"], (fence["info"].split() or [""])[0].lower(), []
        elif fence and fence["marks"].startswith(marks) and not fence["info"].strip():
            found.append(_Block(language, _joined(lines), closed=True))
            marks = ""
        else:
            lines.append(line)
    if marks:
        found.append(_Block(language, _joined(lines), closed=False))
    return found


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
