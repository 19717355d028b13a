"""No command writes a file that the user did not ask for: it works on a read-only system, without a home."""

import json
import os
import subprocess
import sys

import pytest

from qwq_ref import core
from tests.support.paths import ROOT

# Python tells an audit hook of every file that it opens, and of every change to a folder.
SCRIPT = """
import os, sys, json
sys.dont_write_bytecode = True
changes, writing = [], os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
names = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
         "os.utime", "tempfile.mkstemp", "tempfile.mkdtemp", "sqlite3.connect")

def hook(event, arguments):
    if event == "open" and arguments[2] and arguments[2] & writing:
        if not isinstance(arguments[0], int) and not str(arguments[0]).startswith("/dev/"):
            changes.append([event, str(arguments[0])])
    elif event in names:
        changes.append([event, str(arguments[0])])

sys.addaudithook(hook)
from qwq_ref.cli import main
done = []
for command in json.loads(sys.argv[1]):
    changes.clear()
    status = main(command)
    done.append([status, list(changes)])
print("\\n" + json.dumps(done))
"""
QUESTION = ["generate", "What is 1+1?", "-n", "3", "--seed", "1"]


def outcomes(commands):
    """Run commands in one process, without a home or a temporary folder -> (status, changes to files) of each."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONWARNINGS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"TMPDIR": "/nowhere", "HF_HUB_CACHE": "/nowhere/hub", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [(status, changes) for status, changes in json.loads(done.stdout.splitlines()[-1])]


def test_commands_write_nothing():
    commands = [
        QUESTION,
        [*QUESTION, "--backend", "numpy"],
        [*QUESTION, "--json"],
        ["info"],
        ["info", "qwq-32b"],
        ["info", "--check", "qwq-nano"],
        ["eval", "--categories", "add3", "-n", "1", "--max-tokens", "5"],
        ["golden", "list"],
    ]
    for command, (status, changes) in zip(commands, outcomes(commands), strict=True):
        assert (status, changes) == (0, []), command


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_what_is_asked_for_is_written(tmp_path):
    """So that the test above sees what is written."""
    command = ["convert", "-m", "qwq-nano", str(tmp_path / "new")]
    ((status, changes),) = outcomes([command])
    assert status == 0
    written = [path for _, path in changes]
    assert str(tmp_path / "new") in written
    assert any(path.startswith(str(tmp_path / "new" / ".config.json.")) for path in written)
    assert all(path.startswith(str(tmp_path)) for _, path in changes)
