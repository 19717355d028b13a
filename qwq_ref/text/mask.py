"""Keep untrusted text from becoming control tokens on its way through a chat template."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from ..errors import TemplateError
from .tokenizer import Tokenizer


class Mask:
    """A substitution that no added token survives: `hide` before a template runs, `show` afterwards.

    An added token of Qwen's begins with `<` and ends with `>`. In untrusted text, `hide` replaces such characters:
    each becomes a private-use character that occurs nowhere else. No token can then begin or end there, however the
    template cuts, strips or joins the text. One character replaces one, so all lengths stay. Two things follow:

    - A template that looks for `<` in a user's text does not find it.
    - A template that itself writes `<` + text + `>` can still make a token. The template is then its author.

    Templates look for markers in the text of an assistant, to cut earlier reasoning. This text keeps <think>, </think>
    and the added tokens that are not special. Other markers are texts of any form, and tokens for no tokenizer. With
    `loose`, the text keeps these too: only whole special tokens are replaced. Parts of two texts may then become one
    special token, so the caller compares the special tokens of both renderings.

    Programs and keys consist of letters, digits, `_` and white space. These characters are replaced only within
    whole tokens. Otherwise a tokenizer with an added token "name" would hide `tool.name` from the template.

    template  the template's text
    texts     all strings that the template can see: what they and the template contain is no substitute

    Raises TemplateError where no private-use character is free.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, texts: list[str]) -> None:
        ends = sorted({char for token in tokenizer.spellings for char in (token[0], token[-1])})
        present = "".join([template, *texts, *tokenizer.spellings])
        used = set(present)
        # A template may write a character as JSON or Python escapes it. The escape must be unmistakable as well.
        used.update(chr(int(digits, 16)) for digits in re.findall(r"\\u([0-9a-fA-F]{4})", present))
        free = (char for char in map(chr, range(0xE000, 0xF900)) if char not in used)
        self._hide = dict(zip(ends, free, strict=False))
        if len(self._hide) < len(ends):
            raise TemplateError(None, "messages", "use every private-use character there is")
        self._show = {ord(mask): char for char, mask in self._hide.items()}
        self._escapes = {f"\\u{code:04x}": char for code, char in self._show.items()}
        special = {token for token, identity in tokenizer.spellings.items() if identity in tokenizer.special}
        self._tokenizer = tokenizer
        self._kept = (tokenizer.spellings.keys() - special) | {"<think>", "</think>"}
        self._control = tokenizer.special - {tokenizer.spellings.get(marker) for marker in self._kept}
        anywhere = "".join(char for char in ends if not (char.isalnum() or char.isspace() or char == "_"))
        self._pattern = _pattern({*tokenizer.spellings}, anywhere)
        self._spoken = _pattern({*tokenizer.spellings} | self._kept, anywhere)
        self._loose = _pattern({*tokenizer.spellings} | self._kept, "")
        self._table = str.maketrans(self._hide)
        # A token that is looked for in normalised text must be found there, and masked.
        self._normalize = tokenizer.normalize if tokenizer.has_normalized else None

    def hide(self, value: Any, *, assistant: bool = False, loose: bool = False) -> Any:
        """Mask all strings of plain data, keys too. `assistant` keeps the markers that an assistant may write."""
        if isinstance(value, str):
            if self._normalize:
                value = self._normalize(value)
            if not assistant:
                return self._pattern.sub(lambda match: match[0].translate(self._table), value)
            pattern = self._loose if loose else self._spoken
            return pattern.sub(lambda m: m[0] if m[0] in self._kept else m[0].translate(self._table), value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value

    def controls(self, text: str) -> list[int]:
        """Return the ids of the special tokens in a rendering, without those that an assistant may write."""
        return [part for part in self._tokenizer.split_added(text) if isinstance(part, int) and part in self._control]

    def show(self, text: str) -> str:
        """Put the masked characters back."""
        for escape, char in self._escapes.items():
            text = text.replace(escape, char)
        return text.translate(self._show)


def _pattern(texts: set[str], chars: str) -> re.Pattern[str]:
    """Return a pattern that finds the leftmost and longest of some texts, and else any of some characters."""
    choices = [*map(re.escape, sorted(texts, key=len, reverse=True)), *([f"[{re.escape(chars)}]"] if chars else [])]
    return re.compile("|".join(choices) or "(?!)")


def strings_of(value: Any) -> Iterator[str]:
    """All strings of plain data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(strings_of, value))
    elif isinstance(value, dict):
        yield from value
        yield from itertools.chain.from_iterable(map(strings_of, value.values()))
