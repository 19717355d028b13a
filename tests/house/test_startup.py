"""At startup: a source folder without a compiled core says so once, and `qwq --version` names what computes."""

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

import qwq_ref
from qwq_ref import core, startup
from qwq_ref.cli import main
from qwq_ref.host.limits import cpus
from tests.support.paths import PACKAGE

SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A source folder without a compiled core."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(PACKAGE, folder / "qwq_ref", ignore=shutil.ignore_patterns("_core*", "__pycache__", "models"))
    (folder / "csrc").mkdir()
    (folder / "csrc" / "qwq.h").touch()
    return folder


def python(folder, *arguments, **changes):
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env | changes, capture_output=True, text=True, timeout=120
    )


def test_a_source_folder_without_a_core_says_so_in_one_line(sources):
    done = python(sources, "-m", "qwq_ref", "--version")
    assert (done.returncode, done.stdout) == (0, f"qwq {qwq_ref.__version__} (no core: NumPy)\n")
    assert re.fullmatch(
        r"qwq_ref:1: UserWarning: .* has no compiled core, so NumPy computes, slowly\. .* pip install -e \.\n",
        done.stderr,
    )
    again = python(sources, "-c", "import qwq_ref, importlib; importlib.reload(qwq_ref); import qwq_ref.core")
    assert again.stderr.count("\n") == 1
    assert python(sources, "-c", "import qwq_ref", PYTHONWARNINGS="ignore").stderr == ""


def test_a_source_folder_that_hides_an_installed_core_says_that(sources, tmp_path):
    installed = tmp_path / "qwq_ref" / "core"
    installed.mkdir(parents=True)
    path = [str(sources), str(tmp_path)]
    assert "hides" not in startup.problem(sources / "qwq_ref", path)
    (installed / f"_core{SUFFIX}").touch()
    found = startup.problem(sources / "qwq_ref", path)
    assert found.endswith(f"It hides the package in {tmp_path}, which has one: run from another folder")
    done = python(sources, "-c", "import qwq_ref", PYTHONPATH=str(tmp_path))
    assert "hides the package" in done.stderr


def test_where_no_core_is_expected_nothing_is_said(tmp_path):
    """Installed without a compiler; and built in the source folder, whose core may even be broken."""
    (tmp_path / "qwq_ref" / "core").mkdir(parents=True)
    assert startup.problem(tmp_path / "qwq_ref", [str(tmp_path)]) is None
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "qwq.h").touch()
    assert startup.problem(tmp_path / "qwq_ref", [str(tmp_path)]) is not None
    (tmp_path / "qwq_ref" / "core" / f"_core{SUFFIX}").touch()
    assert startup.problem(tmp_path / "qwq_ref", [str(tmp_path)]) is None


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_the_version_names_what_computes(capsys, monkeypatch):
    def version():
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    monkeypatch.delenv("QWQ_ISA", raising=False)
    threads = f"{cpus()} thread{'s' * (cpus() > 1)}"
    assert version() == f"qwq {qwq_ref.__version__} (core {core.isas()[-1]}, {threads})\n"
    monkeypatch.setenv("QWQ_ISA", "scalar")
    assert "(core scalar, " in version()
    monkeypatch.setenv("QWQ_ISA", "mmx")
    assert main(["--version"]) == 1
    assert "mmx cannot run here" in capsys.readouterr().err


def test_help_and_options_do_not_import_numpy():
    for command in (["--help"], *([name, "--help"] for name in ("generate", "info", "doctor", "convert", "eval"))):
        script = (
            f"import sys; from qwq_ref.cli import main\ntry: main({command})\nfinally: print('numpy' in sys.modules)"
        )
        done = python(PACKAGE.parent, "-c", script)
        assert done.stdout.endswith("False\n"), command
