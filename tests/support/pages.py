"""The blocks of code of a page of Markdown."""

import re


def fenced(page, language):
    """[(line number, text)] of the page's fenced blocks of a language."""
    text = page.read_text()
    return [
        (text[: match.start()].count("\n") + 1, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]
