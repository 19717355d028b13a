"""Letters of a picture: tokens as short labels, and characters that the fonts of this machine cannot show.

A picture in SVG keeps its text as text, and whoever opens it has fonts of their own. In a PNG, letters are pixels:
an installed font that has them serves, and otherwise an escape such as \\u4e2d takes their place.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FONT = "DejaVu Sans"  # comes with matplotlib
_SIGNS = {"\n": "↵", "\t": "⇥", " ": "␣"}  # FONT has them
LONGEST = 14  # characters of a label


@dataclass(frozen=True)
class Letters:
    """The characters that can be shown, and the ones that were.

    fonts    names of fonts, in the order in which a character is looked for
    missing  characters that none of them has
    seen     characters that were asked for so far
    """

    fonts: tuple[str, ...] = (FONT,)
    missing: frozenset[str] = frozenset()
    seen: set[str] = field(default_factory=set)

    def text(self, text: str) -> str:
        """Return a text of one line, with escapes for what cannot be shown."""
        return "".join(map(self._shown, text.replace("\n", "↵")))

    def token(self, text: str, most: int = LONGEST) -> str:
        """Return the label of a token: short, with signs for blanks and line ends."""
        signs = "".join(_SIGNS.get(character, character) for character in text)
        return cut("".join(map(self._shown, signs)), most)

    def _shown(self, character: str) -> str:
        self.seen.add(character)
        if character.isprintable() and character not in self.missing:
            return character
        return character.encode("unicode_escape").decode("ascii")


def cut(text: str, most: int) -> str:
    """Return a text of at most so many columns; an ellipsis stands for the rest."""
    if columns(text) <= most:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) > most - 1:
            break
        kept += character
    return f"{kept}…"


def columns(text: str) -> int:
    """Return the width of a text in half-width characters: a Chinese character counts as two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def for_pixels(texts: Iterable[str]) -> Letters:
    """Return the letters for a PNG: find an installed font for each character that FONT lacks."""
    from matplotlib import font_manager

    fonts, missing = [FONT], lacking(character for text in texts for character in text)
    if missing:
        for entry in sorted(font_manager.fontManager.ttflist, key=_preference):
            found = _covered(entry.fname, missing)
            if found:
                fonts.append(entry.name)
                missing -= found
            if not missing:
                break
    return Letters(tuple(dict.fromkeys(fonts)), frozenset(missing))


def lacking(characters: Iterable[str]) -> set[str]:
    """Return the characters that FONT lacks: whoever opens an SVG with them needs a font of their own."""
    from matplotlib import font_manager

    wanted = set(filter(str.isprintable, characters))
    return wanted - _covered(font_manager.findfont(FONT), wanted)


def _preference(entry: object) -> tuple[bool, bool, str]:
    """Upright fonts of usual weight come first, and then the order of names: the same choice each time."""
    style, weight, name = (getattr(entry, field, "") for field in ("style", "weight", "name"))
    return style != "normal", weight not in (400, "normal", "regular", "book"), f"{name} {getattr(entry, 'fname', '')}"


def _covered(file: str, characters: Iterable[str]) -> set[str]:
    """Return those characters that the font in a file has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return set()
    if "lastresort" in font.family_name.replace(" ", "").lower():  # draws a box for each script
        return set()
    return {c for c in characters if font.get_char_index(ord(c))}


def widest(labels: Sequence[str]) -> int:
    return max(map(columns, labels), default=0)
