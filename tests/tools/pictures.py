"""Draw the pictures of docs/inside.md again, from the commands on that page.

python -m tests.tools.pictures [FOLDER]

FOLDER is docs/ by default. The pictures need matplotlib: pip install 'qwq_ref[plot]'.
"""

import re
import shlex
import sys
from pathlib import Path

from qwq_ref.cli import main as qwq
from tests.support.paths import DOCS

PAGE = DOCS / "inside.md"


def commands():
    """Return picture -> the words of its command, without the last two: -o and the picture."""
    found = {}
    for line in re.findall(r"^qwq (plot .*\.svg)$", PAGE.read_text(), re.MULTILINE):
        *words, option, picture = shlex.split(line)
        assert option == "-o"
        found[picture] = words
    return found


def draw(folder):
    for picture, words in commands().items():
        assert qwq([*words, "-o", str(Path(folder) / picture)]) == 0, picture


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else DOCS)
