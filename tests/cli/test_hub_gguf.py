"""GGUF models of the hub on the command line: the list to choose from, the question, and every command."""

import json
import subprocess
import sys

import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import choice, doctor, main
from qwq_ref.config import Config
from qwq_ref.engine import fit
from qwq_ref.errors import ChoiceError, MemoryLimitError, QwqError
from qwq_ref.formats.hub.choice import Offer
from qwq_ref.formats.names import SHIPPED
from qwq_ref.host import memory
from tests.support.hub_gguf import CONFIG, in_shards, model, repository
from tests.support.hub_server import environment

pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
NAME = "owner/name"
ASK = ("--raw", "-p", "x", "-n", "3", "--seed", "1", "-c", "64", "--temp", "0")


def qwq(hub, home, *arguments):
    command = [sys.executable, "-m", "qwq_ref", *map(str, arguments)]
    return subprocess.run(command, env=environment(hub, home), capture_output=True, text=True, timeout=120)


def downloaded(home):
    return sorted(file.name for file in home.rglob("snapshots/*/*"))


def test_the_list_to_choose_from(hub, tmp_path):
    hub.add(NAME, repository() | in_shards("BF16/m-bf16"))
    done = qwq(hub, tmp_path, "generate", "-m", NAME, *ASK)
    assert (done.returncode, done.stdout) == (1, "")
    head, columns, *rows, page, command, error = done.stderr.splitlines()
    assert head.startswith(
        f"{NAME}: GGUF models, and about the memory that each needs with 4,096 tokens of context, of "
    )
    assert columns.split() == ["model", "files", "size", "memory", "fits"]
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == [f"{NAME}:{kind}" for kind in ("Q2_K", "Q4_K_M", "Q8_0", "BF16")]
    assert [row[1] for row in cells] == ["1", "1", "1", "2"]
    assert {row[-1] for row in cells} == {"yes"}
    assert page == "docs/models.md tells which to take. The command for one of them:"
    assert command == f"  qwq generate -m {NAME}:Q4_K_M --raw -p x -n 3 --seed 1 -c 64 --temp 0"
    assert error.startswith(f"qwq: {NAME}: holds 4 GGUF models: name one, such as {NAME}:Q4_K_M; there are Q2_K, ")
    assert downloaded(tmp_path) == []
    done = qwq(hub, tmp_path, *command.split()[1:], "--yes")  # it works as it stands
    assert done.returncode == 0, done.stderr
    assert downloaded(tmp_path) == ["m-q4_k_m.gguf"]
    again = qwq(hub, tmp_path, *command.split()[1:], "--offline")
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_those_that_fit(tmp_path):
    """QwQ-32B's official files: the memory of the list is that of the planner, which knows each matrix."""
    pytest.importorskip("llama_cpp")
    from tests.tools import model_sizes

    config = Config.from_file(SHIPPED / "qwq-32b/config.json")
    model_sizes.sparse(config, tmp_path / "bf16.gguf")
    offers, needs = [], {}
    for kind in model_sizes.NAMES:
        size, form = model_sizes.of_gguf(config, tmp_path / "bf16.gguf", kind)
        offers.append(Offer(f"Qwen/QwQ-32B-GGUF:{kind}", f"x-{kind}.gguf", (f"x-{kind}.gguf",), kind, int(size)))
        needs[kind] = sum(fit.core_needs(config, form, "int8")(4096).values())
    found = ChoiceError("Qwen/QwQ-32B-GGUF", "several", offers, suit=True)
    found.config = config
    for kind, offer in zip(needs, offers, strict=True):
        assert choice._needs(found, offer) == pytest.approx(needs[kind], rel=0.04), kind
    for available, named in ((19.6e9, "Q4_0"), (23e9, "Q4_K_M"), (200e9, "Q4_K_M"), (4e9, "Q4_K_M")):
        page = choice.page(found, "qwq eval -m Qwen/QwQ-32B-GGUF", int(available))
        rows = {row.split()[0].rpartition(":")[2]: row.split()[-1] for row in page.splitlines()[2:-2]}
        assert rows == {kind: "yes" if need <= available else "no" for kind, need in needs.items()}
        assert page.endswith(f"\n  qwq eval -m Qwen/QwQ-32B-GGUF:{named}")
    found.config = None  # only the size is known
    rows = [row.split() for row in choice.page(found, "", int(16e9)).splitlines()[2:-2]]
    assert [row[2:] for row in rows[1:3]] == [["14.84", "GiB", "?", "?"], ["16.64", "GiB", "?", "no"]]


def test_a_list_without_end():
    offers = [Offer(f"{NAME}/{i}.gguf", f"{i}.gguf", (f"{i}.gguf",), "", None) for i in range(5000)]
    page = choice.page(ChoiceError(NAME, "several", offers, suit=True), "qwq", 1 << 30)
    assert len(page.splitlines()) < 60
    assert "... and 4950 more" in page
    assert "unknown" in page


@pytest.mark.parametrize("option", ["-m", "-hf", "--hf-repo"])
def test_it_asks_and_tells_the_memory(hub, tmp_path, option):
    hub.add(NAME, repository() | in_shards("BF16/m-bf16"))
    done = qwq(hub, tmp_path, "generate", option, f"{NAME}:bf16", *ASK)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == f"{NAME}:bf16: files to read, from the hub to {tmp_path}/hub"
    assert lines[2].split()[:2] == ["BF16/m-bf16-*-of-00002.gguf", "2"]
    assert lines[-2].startswith("memory: weights file, KV cache fp32, 64 tokens of context: weights ")
    assert lines[-1].startswith(f"qwq: {NAME}:bf16: is not in the cache; --yes downloads it (")
    assert downloaded(tmp_path) == []


def test_memory_before_is_memory_after(local_hub, tmp_path, capsys):
    local_hub.add(NAME, repository())
    lines = []
    assert main(["generate", "-m", f"{NAME}:q4_k_m", *ASK, "-y", "-v"]) == 0
    before = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("memory: "))
    qwq_ref.load(f"{NAME}:q4_k_m", context=64, announce=lambda line, size: lines.append(line))
    plain = [
        line.partition(" = ")[0].replace(" (Q4_K, F32)", "") for line in (before.removeprefix("memory: "), lines[0])
    ]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("form", [None, "file", "q4"])
def test_a_model_that_does_not_fit_is_not_downloaded(local_hub, tmp_path, monkeypatch, form):
    local_hub.add(NAME, repository(["q4_k_m"]))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 18)
    with pytest.raises(MemoryLimitError, match=f"^{NAME}: needs "):
        qwq_ref.load(NAME, weights=form)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("template", "arguments", "words"),
    [
        (None, ["-p", "x"], "has no chat template"),
        ("{% if %}", ["-p", "x"], "line 1: Expected an expression"),
    ],
)
def test_a_header_that_will_not_serve(local_hub, tmp_path, capsys, template, arguments, words):
    local_hub.add(NAME, {"m-q4_k_m.gguf": model(template=template)[0]})
    assert main(["generate", "-m", NAME, "-y", "-n", "3", *arguments]) in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"qwq: {NAME}/m-q4_k_m.gguf: ")
    assert words in last
    assert not list((tmp_path / "hub").rglob("*.gguf"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "--weights", "file", "-o", "{out}"),
        ("convert", "--to", "hf", "-o", "{out}"),
        ("perplexity", "-f", "{text}", "-c", "8"),
        ("golden", "record", "--ids", "1,2", "-o", "{out}"),
        ("info", "--check"),
        ("bench", "-p", "8", "-n", "0", "-r", "1", "--weights", "file"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_every_command_that_reads_weights_asks(hub, tmp_path, arguments):
    hub.add(NAME, repository())
    (tmp_path / "text").write_text("a b c d " * 40)
    words = [word.format(out=tmp_path / "out", text=tmp_path / "text") for word in arguments]
    words += ["-m", f"{NAME}:q4_k_m"]
    done = qwq(hub, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert "--yes downloads it (" in done.stderr
    assert downloaded(tmp_path) == []
    done = qwq(hub, tmp_path, *words, "-y")
    assert done.returncode == 0, done.stderr
    assert downloaded(tmp_path) == ["m-q4_k_m.gguf"]


def test_info_and_doctor_fetch_a_header_at_most(local_hub, tmp_path, capsys):
    local_hub.add(NAME, repository())
    assert main(["info", f"{NAME}:q4_k_m", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stored_bytes"]["Q4_K"] > facts["stored_bytes"]["F32"]
    asked = doctor._read(f"{NAME}:q4_k_m", offline=False)
    assert (asked.run_as, asked.config, asked.packed) == (f"{NAME}:q4_k_m", CONFIG, ())
    assert asked.kept.formats
    assert not list((tmp_path / "hub").rglob("*.gguf"))
    for command in ("info", "doctor"):
        assert main([command, "-m", NAME]) == 1
        assert f"qwq {command} -m {NAME}:Q4_K_M" in capsys.readouterr().err
    with pytest.raises(QwqError, match="offline"):
        doctor._read(f"{NAME}:q8_0", offline=True)


@pytest.mark.parametrize("word", ["--hf-file", "-hff"])
def test_the_option_for_a_file_tells_the_way(capsys, word):
    assert main(["generate", "-hf", NAME, word, "x.gguf", "-p", "x"]) == 2
    assert "--model ID/FILE.gguf or --model ID:TYPE" in capsys.readouterr().err
