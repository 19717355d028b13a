"""The containment that works on this machine: bubblewrap, or namespaces of our own. Without one, nothing runs."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..errors import SandboxError
from . import seccomp, view

WAYS = ("bubblewrap", "namespaces")
_SCRIPT = Path(__file__).resolve().with_name("namespaces.py")
_SPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_NOBODY = 65534
_FIRST_USER, _USERS = 1_900_000_000, 1 << 20  # numbers that no system gives to a user
_lock = threading.Lock()
_users = os.getpid()


def containment() -> str | None:
    """Return the containment that programs run in: "bubblewrap", "namespaces", or None where neither works."""
    return next((way for way in WAYS if problem(way) is None), None)


def require_containment() -> str:
    """Return the containment that programs run in. Raises SandboxError, with the reasons, where there is none."""
    way = containment()
    if way is None:
        reasons = "; ".join(f"{way}: {problem(way)}" for way in WAYS)
        raise SandboxError(None, None, f"nothing contains a program on this machine, so none runs ({reasons})")
    return way


@cache
def problem(way: str) -> str | None:
    """Return why a containment does not work here; None if it works. The first call starts a small program in it."""
    if sys.platform != "linux":
        return "needs Linux"
    if not seccomp.supported():
        return f"the system calls of {os.uname().machine} are not known"
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        return "there is no bwrap; apt-get install bubblewrap"
    from .process import tried

    return tried(way)


def is_whole_root() -> bool:
    """Return whether this process is root over all users, not only within a namespace of users."""
    if os.geteuid():
        return False
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    except OSError:
        return False


def new_user() -> int:
    """Return a user for one program to become where root starts it; 0 for other users, who have nothing to give up.

    A user of its own lets the system count the program's threads alone.
    """
    global _users
    if not is_whole_root():
        return 0
    with _lock:
        _users += 1
        return _FIRST_USER + _users % _USERS


def command(way: str, filter_fd: int, seen: Sequence[str]) -> list[str]:
    """Return the beginning of a command that contains its end.

    filter_fd  a file with the filter of system calls
    seen       `view.options`
    """
    user = [] if is_whole_root() else ["--unshare-user", "--uid", str(_NOBODY)]
    if way == "namespaces":
        return [view.python(), "-I", "-S", str(_SCRIPT), *user, *seen, "--seccomp", str(filter_fd), "--"]
    user += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if not user else ["--gid", str(_NOBODY)]
    program = shutil.which("bwrap") or "bwrap"
    return [program, *user, *_SPACES, "--die-with-parent", *seen, "--seccomp", str(filter_fd), "--"]
