"""The tiers of the tests: `--long`, `--real` and `--clients` choose tests by their marks."""

import subprocess
import sys

import pytest

from tests.support import client_programs, real_models
from tests.support.paths import ROOT

TESTS = """
import pytest
from tests.support.client_programs import node_package, python_with
from tests.support.real_models import real_model

def test_usual():
    pass

@pytest.mark.real
def test_real():
    real_model("none.gguf")

@pytest.mark.long
@pytest.mark.real
def test_both():
    pass

@pytest.mark.clients
def test_client():
    python_with("llm")

@pytest.mark.clients
def test_package():
    node_package("openai")

@pytest.mark.clients
@pytest.mark.real
def test_client_of_a_real_model():
    pass

def test_unmarked():
    with pytest.raises(AssertionError, match="needs pytest.mark.real"):
        real_model("none.gguf")
"""


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """A function that runs these tests with options -> the lines of pytest's report."""
    (tmp_path / "test_them.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    monkeypatch.delenv("QWQ_REF_MODELS", raising=False)
    monkeypatch.delenv("QWQ_REF_CLIENTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for tests.conftest

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "-rs"]
        command += ["--rootdir", tmp_path, tmp_path, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout

    return run


def test_the_tiers_are_left_out(outcome):
    out = outcome()
    assert "2 passed, 5 skipped" in out
    assert "real tier: run with --real, and QWQ_REF_MODELS=FOLDER" in out
    assert "clients tier: run with --clients, and QWQ_REF_CLIENTS=FOLDER" in out


def test_the_real_tier_alone(outcome, tmp_path):
    out = outcome("--real")
    assert "3 skipped, 4 deselected" in out
    assert "real tier: every test is skipped: set QWQ_REF_MODELS" in out
    assert "none.gguf is not here: set QWQ_REF_MODELS to the folder that holds it" in out
    assert "clients tier: run with --clients" in out


def test_the_clients_tier_alone(outcome, tmp_path, monkeypatch):
    out = outcome("--clients")
    assert "3 skipped, 4 deselected" in out
    assert "clients tier: every test is skipped: set QWQ_REF_CLIENTS" in out
    assert "llm is not here: python -m tests.tools.client_programs FOLDER installs it" in out
    monkeypatch.setenv("QWQ_REF_CLIENTS", str(tmp_path))
    out = outcome("--clients")
    assert "every test is skipped" not in out
    assert "openai is not here: python -m tests.tools.client_programs" in out
    assert "real tier: run with --real" in out


def test_both_tiers(outcome):
    out = outcome("--clients", "--real")
    assert "1 passed, 4 skipped, 2 deselected" in out


def test_a_folder_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("QWQ_REF_MODELS", str(tmp_path / "none"))
    assert real_models.missing() == f"QWQ_REF_MODELS is {tmp_path / 'none'}, which is no folder"
    monkeypatch.setenv("QWQ_REF_MODELS", str(tmp_path))
    assert real_models.missing() is None


def test_a_folder_of_clients_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("QWQ_REF_CLIENTS", str(tmp_path / "none"))
    assert client_programs.missing() == f"QWQ_REF_CLIENTS is {tmp_path / 'none'}, which is no folder"
    monkeypatch.setenv("QWQ_REF_CLIENTS", str(tmp_path))
    assert client_programs.missing() is None
