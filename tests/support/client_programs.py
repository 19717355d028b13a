"""Programs that call the server, if this machine has them. Tests that run them are marked `clients`.

`python -m tests.tools.client_programs FOLDER` installs them: a virtual environment for each program in Python, and
`node_modules` for packages of JavaScript.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

VARIABLE = "QWQ_REF_CLIENTS"
SCRIPTS = ROOT / "tests" / "serve" / "clients"
tier = False  # whether the running test is marked
_SECONDS = 900


def missing():
    """Return the reason for which this machine has no such programs, or None if it has a folder for them."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return f"set {VARIABLE} to a folder of python -m tests.tools.client_programs"
    return None if Path(folder).is_dir() else f"{VARIABLE} is {folder}, which is no folder"


def python_with(name):
    """Return the Python of a virtual environment in the folder; skip the test without it."""
    return _found(f"{name}/bin/python", name)


def node_package(name):
    """Return the folder of a package of JavaScript; skip the test without it, or without node."""
    path = _found(f"node_modules/{name}", name)
    if shutil.which("node") is None:
        pytest.skip("node is not here")
    return path


def _found(path, name):
    assert tier, "a test that runs a client needs pytest.mark.clients"
    whole = Path(os.environ.get(VARIABLE, "none"), path).absolute()
    if not whole.exists():
        pytest.skip(f"{name} is not here: python -m tests.tools.client_programs FOLDER installs it")
    return whole


def run_client(*command, folder, **variables):
    """Run a program in a folder that is its home -> its output. It gets no variable of this process but PATH.

    A failure shows the output of both streams.
    """
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", **variables}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
