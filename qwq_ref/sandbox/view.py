"""The files that a contained program sees: Python, the system's libraries, and a small folder in memory to write in.

The view is a list of options of bubblewrap. Packages are hidden: a data set such as HumanEval can be one of them, with
the answers of its tests.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

HOME = "/tmp"  # the folder to write in
CODE = "/sandbox"
_INSIDE = Path(__file__).resolve().parent / "inside"
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PACKAGES = ("site-packages", "dist-packages")


@cache
def python() -> str:
    """Return the path of the Python that runs, not of a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def options(disk: int, folders: Sequence[str] = ()) -> list[str]:
    """Return the options for Python's own files, and for these folders beside them, all to be read only.

    disk  bytes that the folder to write in can hold
    """
    shown = [option for folder in folders for option in _shown(folder, os.path.realpath(folder))]
    home = ["--size", str(disk), "--perms", "1777", "--tmpfs", HOME]
    # The home comes first: a folder to read may lie below it.
    return [*_python_options(), *home, *shown, "--remount-ro", "/", "--chdir", HOME]


@cache
def _python_options() -> tuple[str, ...]:
    stdlib = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    own = {os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.base_exec_prefix)}
    links, folders = [], set()
    for path in _LIBRARIES:
        if os.path.islink(path):
            links += ["--symlink", os.path.realpath(path), path]
    for path in (*map(_with_libraries, _LIBRARIES), *(own - set(_LIBRARIES)), *stdlib):
        if os.path.isdir(path):
            folders.add(os.path.realpath(path))
    folders = {path for path in folders if not any(str(parent) in folders for parent in Path(path).parents)}
    shown = [option for path in sorted(folders) for option in _shown(path)]
    hidden = [option for path in _packages(folders | stdlib) for option in ("--size", "4096", "--tmpfs", path)]
    files = [python(), "/etc/ld.so.cache"]
    single = [option for path in files if os.path.exists(path) for option in _shown(path)]
    code = _shown(f"{CODE}/inside", str(_INSIDE))
    return (*shown, *hidden, *links, *single, *code)


def _with_libraries(path: str) -> str:
    """Return the folder of libraries within one such as /usr/lib, where Debian keeps whole programs, too."""
    narrow = os.path.join(path, sysconfig.get_config_var("MULTIARCH") or "")
    return narrow if os.path.isdir(narrow) else path


def _shown(path: str, source: str | None = None) -> list[str]:
    """Return the options that show a file or folder. All may enter its parents, which bubblewrap would make private."""
    parents = [str(parent) for parent in reversed(Path(path).parents) if str(parent) not in ("/", HOME)]
    made = [option for parent in parents for option in ("--perms", "0755", "--dir", parent)]
    return [*made, "--ro-bind", source or path, path]


def _packages(folders: Iterable[str]) -> list[str]:
    """Return the folders of installed packages within some folders."""
    found = {os.path.realpath(sysconfig.get_path(name, vars=_BASE)) for name in ("purelib", "platlib")}
    for folder in map(Path, folders):
        for name in _PACKAGES:
            found |= {str(path) for depth in ("", "*/") for path in folder.glob(f"{depth}{name}") if path.is_dir()}
    inside = [path for path in found if any(path.startswith(f"{os.path.realpath(folder)}/") for folder in folders)]
    return sorted(path for path in inside if os.path.isdir(path))


_BASE = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
