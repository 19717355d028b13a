"""A clean checkout in a new folder: the files that git knows or would add, and no build."""

import shutil
import subprocess
from pathlib import Path

from tests.support.paths import ROOT


def files():
    """The names of all files of the repository that are not ignored, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def copy(folder):
    """Copy the working tree's files into a folder -> the folder."""
    folder = Path(folder)
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder
