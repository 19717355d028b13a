"""Style and types are checked like everything else."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

OLDEST = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11),
    reason="types are checked with the oldest Python only: later ones bring stubs of NumPy in a syntax of their own",
)


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=OLDEST)])
def test_style(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
