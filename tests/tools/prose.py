"""Check files against the rules for prose in docs/glossary.md, and print each fault with its line.

    python -m tests.tools.prose [FILES OR FOLDERS]

Without arguments, all pages, docstrings and help texts are checked. Line 0 is a help text.
"""

import sys
from pathlib import Path

from tests.support import prose
from tests.support.paths import ROOT


def main(arguments):
    wanted = [str(Path(name).resolve().relative_to(ROOT)) for name in arguments]
    names = [n for n in prose.files() if not wanted or any(n == w or n.startswith(f"{w}/") for w in wanted)]
    count = 0
    for name in names:
        for line, rule, sentence in prose.check(name):
            print(f"{name}:{line}: {rule}\n    {sentence}")
            count += 1
    print(f"{count} faults in {len(names)} files")
    return count > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
