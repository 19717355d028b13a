"""The limits that a process sets on itself before it runs code that nobody vouches for."""

from __future__ import annotations

import builtins
import os
import resource
import sys


def require_parent(lifeline: int) -> None:
    """End this process if the one that starts it has ended, or has closed its end of this pipe.

    From here on, the system ends this process with that one. Before, that one could have ended without notice.
    """
    os.set_blocking(lifeline, False)
    try:
        os.read(lifeline, 1)
    except BlockingIOError:
        os.close(lifeline)
    else:
        os._exit(125)


def confine(memory: int, seconds: int, disk: int, threads: int, uid: int) -> None:
    """Give up the rights of root, and all but these bytes of memory, seconds of CPU time, bytes a file, and threads.

    uid  the user to become; 0 where the process has no rights to give up
    """
    # CPU: the first limit ends a program that does not catch the signal, the second one any program.
    limits = {"AS": memory, "FSIZE": disk, "NOFILE": 64, "CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0}
    for name, limit in limits.items():
        _set(name, limit, limit)
    _set("CPU", seconds, seconds + 1)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _set("NPROC", threads, threads)  # counts for this user, within its namespace
    for name in ("exit", "quit"):  # programs use them; Python's `site` module, which is left out, makes them
        setattr(builtins, name, sys.exit)


def _set(name: str, soft: int, hard: int) -> None:
    which = getattr(resource, f"RLIMIT_{name}")
    most = resource.getrlimit(which)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(which, (soft, hard))
