"""The rules for prose of docs/glossary.md, as a check: sentence length, openings, and words to avoid."""

import argparse
import ast
import importlib
import inspect
import re
from typing import NamedTuple

from qwq_ref import cli
from tests.support.paths import DOCS, PACKAGE, ROOT

MOST_WORDS = 30
ABBREVIATIONS = r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bcf)(?<!\betc)(?<!\bapprox)(?<!\bFig)"
END_OF_SENTENCE = re.compile(rf"{ABBREVIATIONS}[.!?][\"')\]]*(?=\s)")
OPENING = re.compile(r"(What|Whatever|Who|Whoever|Which|Whichever|That|How(?! to\b))\b")
INVERSION = re.compile(
    r"\b(says|tells|reports|shows) CODE[.:;,]?$|, (says|tells) |^(Nor|So|Never) (do|does|is|are|has|can)\b"
)


class Fault(NamedTuple):
    line: int  # of the paragraph
    rule: str
    sentence: str


def words_to_avoid():
    """{word: replacement}, from the table in the glossary."""
    table = (DOCS / "glossary.md").read_text().partition("## Words to avoid")[2].partition("\n## ")[0]
    rows = [re.fullmatch(r"\| (`.*`) \| (.*) \|", row) for row in table.splitlines()]
    return {word: row[2] for row in rows if row for word in re.findall(r"`([^`]+)`", row[1])}


AVOID = words_to_avoid()
AVOIDED = re.compile(rf"\b({'|'.join(map(re.escape, sorted(AVOID, key=len, reverse=True)))})s?\b", re.IGNORECASE)


def sentences(paragraph):
    """The sentences of a paragraph of Markdown, where inline code and formulas are the word CODE."""
    text = re.sub(r"(``.+?``|`[^`]*`|\$[^$]+\$)", "CODE", " ".join(paragraph.split()))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # a link's text
    text = text.replace("*", "")
    start = 0
    for end in END_OF_SENTENCE.finditer(text):
        yield text[start : end.end()].strip()
        start = end.end()
    yield text[start:].strip()


def faults(line, paragraph):
    """The faults of one paragraph that begins in that line."""
    for sentence in sentences(paragraph):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > MOST_WORDS:
            yield Fault(line, f"{len(words)} words, at most {MOST_WORDS}", sentence)
        if OPENING.match(sentence) and not sentence.endswith("?") and len(words) > 1:
            yield Fault(line, f"begins with {words[0]}: a concrete noun is a better subject", sentence)
        if INVERSION.search(sentence):
            yield Fault(line, "the verb comes before its subject", sentence)
        for word in AVOIDED.finditer(sentence):
            yield Fault(line, f'"{word[0]}": write {replacement(word[1])}', sentence)


def replacement(word):
    return next(value for key, value in AVOID.items() if key.lower() == word.lower())


def paragraphs(text):
    """(line, paragraph) of Markdown: headings, list items and cells of tables are paragraphs; code blocks are none."""
    kept, start, fence = [], 1, None
    for number, line in enumerate([*text.splitlines(), ""], 1):
        stripped = line.strip()
        mark = re.match(r"(`{3,}|~{3,})", stripped)
        if fence:
            fence = None if stripped == fence else fence
            continue
        ends = not stripped or mark or re.match(r"([-*+] |\d+\. |[#>|:]|<!--|\[\w+\]:)", stripped)
        if ends and kept:
            yield start, " ".join(kept)
            kept = []
        if mark:
            fence = mark[1]
        elif stripped.startswith("|"):
            yield from ((number, cell.strip()) for cell in re.split(r"(?<!\\)\|", stripped) if cell.strip(" -:"))
        elif stripped and not re.match(r"(<!--|:::|\[\w+\]:)", stripped):
            start = start if kept else number
            kept.append(re.sub(r"^([-*+] |\d+\. |#+ |> ?)", "", stripped))


def docstrings(source):
    """(line, paragraph) of the docstrings of a module. Shape contracts and indented blocks are no prose."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is None:
                continue
            first = node.body[0].lineno
            lines = inspect.cleandoc(text).splitlines()
            lines = [re.sub(r"^\S+(, \S+)* {2,}(?=\S)", "- ", line) for line in lines]  # "name  meaning": an item
            prose = ["" if re.match(r" {4}|.*\] -> |(\w+ )?\[[^\]]*\]$", line) else line for line in lines]
            yield from ((first + line - 1, paragraph) for line, paragraph in paragraphs("\n".join(prose)))


def help_texts(command):
    """(0, paragraph) of everything that `qwq COMMAND --help`, and the help of its actions, print."""
    parser = argparse.ArgumentParser(description=cli.COMMANDS[command])
    importlib.import_module(f"qwq_ref.cli.{command}").add_arguments(parser)
    yield from ((0, text) for text in _texts(parser))


def _texts(parser):
    yield from filter(None, (parser.description, parser.epilog))
    for group in parser._action_groups:
        yield from filter(None, (group.title, group.description))
    for action in parser._actions:
        if action.help and action.help != argparse.SUPPRESS:
            yield re.sub(r"%\((\w+)\)s", r"`\1`", action.help)
        if isinstance(action, argparse._SubParsersAction):
            yield from (choice.help for choice in action._choices_actions if choice.help)
            for choice in action.choices.values():
                yield from _texts(choice)


def files():
    """Every file whose prose is checked, relative to the root."""
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *PACKAGE.rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in pages)


def check(name):
    """The faults of a file: a page of Markdown, or a module with its docstrings and the help of its command."""
    path = ROOT / name
    if path.suffix == ".md":
        texts = list(paragraphs(path.read_text()))
    else:
        texts = list(docstrings(path.read_text()))
        if path.parent.name == "cli" and path.stem in cli.COMMANDS:
            texts += help_texts(path.stem)
    return sorted({fault for line, paragraph in texts for fault in faults(line, paragraph)})
