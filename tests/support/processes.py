"""Look at the processes of this machine: at others, and at the files that this one has open."""

import os
import subprocess
import time
from pathlib import Path


def runs(pid):
    """Whether a process exists and has not ended. One that has ended may wait for its parent as a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        if Path("/proc/self").exists():
            return False
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and state[0] not in "ZX"


def ends(pid, seconds=20.0):
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runs(pid)


def open_below(folder):
    """Return the files in a folder that this process has open.

    Other descriptors come and go by themselves: a garbage collection may close one of an earlier test.
    """
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the one of the listing itself
            continue
        if target.is_relative_to(folder.resolve()):
            found.append(target)
    return found
