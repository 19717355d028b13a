"""Look at other processes of this machine."""

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
