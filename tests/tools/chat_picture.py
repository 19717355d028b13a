"""Draw a session of `qwq chat`, as tmux shows it, into docs/chat.svg.

python -m tests.tools.chat_picture
"""

import html
import re
import tempfile
import unicodedata

from tests.support.paths import DOCS
from tests.support.tmux import chat

COLUMNS, ROWS = 84, 30
WIDTH, HEIGHT, MARGIN = 8.4, 18, 16  # of a character, of a line, around all, in pixels
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
INK, PAPER = "#d8dee9", "#1f2430"
COLOURS = ["#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9"]


def record():
    """Hold a conversation -> the lines of the screen, with their escape sequences."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {"XDG_STATE_HOME": folder, "TERM": "xterm-256color"}
        with chat("--temp", "0", columns=COLUMNS, rows=ROWS, environment=variables) as terminal:

            def say(text, count):
                terminal.type(text)
                if text.startswith("/"):
                    terminal.press("Space")  # closes the menu
                terminal.press("Enter")
                terminal.until(lambda screen: screen.count("cached;") == count and screen.rstrip().endswith("\n>"))

            terminal.until(lambda screen: screen.rstrip().endswith("\n>"))
            say("What is 123+456?", 1)
            terminal.type("/think hide")
            terminal.press("Enter")
            terminal.until(lambda screen: "folded" in screen and screen.rstrip().endswith("\n>"))
            say("/regen", 2)
            terminal.type("/s")
            terminal.until("/stats")
            return terminal.screen(styles=True).split("\n")


def cells(text):
    """The columns that a text takes."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def colour(number):
    """A colour of the 256 that terminals have: 16 names, a cube of 6 x 6 x 6, and 24 greys."""
    if number < 16:
        return COLOURS[number % 8]
    levels = (0, 95, 135, 175, 215, 255)
    cube = [levels[(number - 16) // step % 6] for step in (36, 6, 1)]
    return "#" + "".join(f"{level:02x}" for level in (cube if number < 232 else 3 * [8 + 10 * (number - 232)]))


def style(codes, old):
    """The attributes after a sequence: bold, dim, inverse, ink, paper."""
    new, numbers = dict(old), [int(code or 0) for code in codes.split(";")]
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            new = {}
        elif code in (1, 2, 7):
            new[{1: "bold", 2: "dim", 7: "inverse"}[code]] = True
        elif code in (22, 27):
            new = {name: value for name, value in new.items() if name not in ("bold", "dim", "inverse")}
        elif 30 <= code <= 37 or 90 <= code <= 97:
            new["ink"] = COLOURS[code % 10]
        elif 40 <= code <= 47 or 100 <= code <= 107:
            new["paper"] = COLOURS[code % 10]
        elif code in (38, 48) and numbers[:1] == [5]:
            new["ink" if code == 38 else "paper"] = colour(numbers[1])
            del numbers[:2]
        elif code in (39, 49):
            new.pop("ink" if code == 39 else "paper", None)
    return new


def runs(line, now):
    """Pairs of a text and its style, and the style behind the line."""
    found, at = [], 0
    for match in _SGR.finditer(line):
        found.append((line[at : match.start()], now))
        now, at = style(match[1], now), match.end()
    found.append((line[at:], now))
    return [(text, how) for text, how in found if text], now


def draw(lines):
    """Return the lines of a screen as an SVG picture."""
    width, height = 2 * MARGIN + COLUMNS * WIDTH, 2 * MARGIN + len(lines) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="A conversation in qwq chat">',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
        '<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">',
    ]
    now = {}
    for row, line in enumerate(lines):
        column, y = 0, MARGIN + row * HEIGHT
        found, now = runs(line, now)
        for text, how in found:
            ink, paper = how.get("ink", INK), how.get("paper", PAPER)
            if how.get("inverse"):
                ink, paper = paper, ink
            x, size = MARGIN + column * WIDTH, cells(text) * WIDTH
            if paper != PAPER:
                parts.append(f'<rect x="{x:.1f}" y="{y}" width="{size:.1f}" height="{HEIGHT}" fill="{paper}"/>')
            if text.strip():
                looks = ' font-weight="bold"' * bool(how.get("bold")) + ' opacity="0.55"' * bool(how.get("dim"))
                parts.append(
                    f'<text x="{x:.1f}" y="{y + 14}" textLength="{size:.1f}" xml:space="preserve" fill="{ink}"{looks}>'
                    f"{html.escape(text)}</text>"
                )
            column += cells(text)
    return "\n".join([*parts, "</g>", "</svg>", ""])


def main():
    (DOCS / "chat.svg").write_text(draw(record()))


if __name__ == "__main__":
    main()
