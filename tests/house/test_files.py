"""The files of the repository: their length, the job of each package, one version, and the metadata."""

import ast
import re
import subprocess
import tomllib

import pytest
import yaml

import qwq_ref
from tests.support import checkout
from tests.support.paths import PACKAGE, ROOT
from tests.tools import matrix

MOST_LINES = 500
LONG: dict[str, str] = {}  # file -> the reason for its length


@pytest.fixture(scope="module")
def files():
    try:
        return checkout.files()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a repository")


def test_no_file_is_long(files):
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in files if re.search(r"\.(py|c|h|md)$", name)}
    long = {name: count for name, count in lines.items() if count > MOST_LINES and name not in LONG}
    assert not long, f"split these files, each with one job: {long}"
    short = {name for name in LONG if lines.get(name, 0) <= MOST_LINES}
    assert not short, f"delete these lines of LONG: {short}"


def test_no_page_or_source_names_a_path_of_one_machine(files):
    for name in files:
        path = ROOT / name
        if path.suffix in (".py", ".c", ".h", ".md", ".toml", ".yml", ".yaml", ".cff", ""):
            assert not re.search(r"(^|[^\w.])/(work|root|home)/", path.read_text()), name


PACKAGES = sorted(PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_has_a_line_that_says_its_job(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(text.splitlines()[:1]) == 1, f"{path} has no docstring"


def test_there_is_one_version():
    """The source has it; pyproject.toml reads it; CITATION.cff and CHANGELOG.md repeat it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "qwq_ref.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == qwq_ref.__version__
    assert f"## {qwq_ref.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_run_the_checks_of_style():
    """Local hooks only: an outside repository would be fetched."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "mypy", "clang-format"}


def test_ci_runs_the_jobs_of_the_matrix():
    """`python -m tests.tools.matrix` and the workflow have the same jobs."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    pythons = workflow["ci"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", *matrix.PYTHONS]
    for version in pythons:
        assert f"Programming Language :: Python :: {version}" in (ROOT / "pyproject.toml").read_text()
    jobs = {"ci", "long", *(f"python{version}" for version in matrix.PYTHONS)}
    assert jobs | set(workflow["matrix"]["strategy"]["matrix"]["job"]) == set(matrix.JOBS)
