"""README and docs keep their word: Python snippets run, commands print what is written under them."""

import re
import shlex
import subprocess
import sys

import pytest

import qwq_ref
from tests.support.pages import fenced
from tests.support.paths import ROOT
from tests.support.servers import serving

SERVED = ("clients.md",)  # pages whose snippets ask a server
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def server():
    with serving(lambda: qwq_ref.load("qwq-nano")) as running:
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, tmp_path, monkeypatch, request):
    """All Python blocks of a page, in order, in one namespace; they assert what they claim."""
    monkeypatch.chdir(tmp_path)
    if page.name in SERVED:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{request.getfixturevalue('server').url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
    namespace = {}
    for line, code in fenced(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_print_what_is_written(page):
    """`$ qwq ...` lines in console blocks: what follows each is its output, where `...` stands for anything."""
    for line, block in fenced(page, "console"):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, wanted = session.partition("\n")
            assert command.startswith("qwq "), f"{page.name}:{line}: only qwq commands can be checked: {command}"
            done = subprocess.run(
                [sys.executable, "-m", "qwq_ref", *shlex.split(command)[1:]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            pattern = ".*".join(re.escape(part) for part in wanted.strip().split("..."))
            assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), f"{page.name}:{line}: {command}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_set_up_is_two_lines_and_ci_runs_the_second():
    section = (ROOT / "README.md").read_text().partition("## Set-up\n")[2].partition("\n## ")[0]
    first, second = (block.strip() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    assert "\n" not in first + second
    assert first in (ROOT / "docs" / "install.md").read_text()
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[script.index('cd "$(dirname "$0")/.."') + 1 :] == [second]
