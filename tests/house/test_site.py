"""The documentation site builds without a warning. Needs `pip install -e '.[docs]'`."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.paths import DOCS, ROOT

NEEDED = ("sphinx", "myst_nb", "furo")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if MISSING:
        pytest.skip(f"the documentation site is NOT tested: {', '.join(MISSING)} missing; pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("api", "_build"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", folder / "docs", folder / "site"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_page_is_in_the_site(site):
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page.name


def test_the_api_pages_come_from_docstrings(site):
    page = (site / "api" / "qwq_ref.spec.ops.html").read_text()
    text = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "qwq_ref.spec.ops.rmsnorm" in text
    assert "Shapes: x [T, D], w [D] -&gt; [T, D]" in text


def test_links_to_sources_leave_their_text(site):
    assert 'href="../' not in (site / "spec.html").read_text()
