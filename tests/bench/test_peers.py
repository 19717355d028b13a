"""The peers of a benchmark: which configurations run, and the files that they load."""

import contextlib
import json
import math
import tempfile

import pytest

from qwq_ref import cli, core
from qwq_ref.bench import measure
from qwq_ref.bench import model as bench_model
from qwq_ref.bench.peers import Peers
from qwq_ref.errors import ConfigError, MemoryLimitError
from qwq_ref.host import memory
from tests.support.gguf_models import peer_config, write_gguf
from tests.support.models import config_values, random_weights

pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install 'qwq_ref[bench]'")
pytest.importorskip("gguf", reason="writes models for the real llama.cpp: pip install 'qwq_ref[bench]'")


class Shown:
    """A progress bar that notes its titles, and what it was told."""

    def __init__(self):
        self.titles, self.told = [], 0

    @contextlib.contextmanager
    def __call__(self, title, total, unit):
        self.titles.append(title)
        before = self.told
        yield self.add
        assert self.told - before == total

    def add(self, count):
        self.told += count


def test_files_are_written_once_and_removed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = Shown()
    names = []
    with Peers(peer_config(), 40, False, "here", shown) as peers:
        for number in range(len(peers)):
            with peers.start(number, 1) as (name, peer):
                names.append(name)
                assert peer.decode(1) > 0
        assert sorted(path.name for path in tmp_path.glob("*/*")) == ["Q4_0.gguf", "Q4_K.gguf"]
    assert names == [f"llama.cpp {quant}{how}" for quant in ("Q4_0", "Q4_K") for how in ("", ", no repacking")]
    assert shown.titles == ["writing Q4_0", "writing Q4_K"]
    assert not list(tmp_path.iterdir())


def test_behind_a_context_each_also_runs_without_flash_attention():
    names = []
    with Peers(peer_config(), 40, True, "here", Shown()) as peers:
        assert len(peers) == 8
        for number in (0, 4):
            with peers.start(number, 1) as (name, _):
                names.append(name)
    assert names == ["llama.cpp Q4_0", "llama.cpp Q4_0, no flash attention"]


def test_what_cannot_be_is_refused_before_a_file_is_written(monkeypatch):
    with pytest.raises(ConfigError, match="hidden_size"):
        Peers(peer_config(head_dim=32), 40, False, "here", Shown())
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryLimitError, match="here"):
        Peers(peer_config(), 40, False, "here", Shown())


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(bench_model, "SHORTEST", 1e-4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config_values() | vars_of(peer_config())))
    shape = ("--shape", str(tmp_path / "config.json"), "-p", "4", "-n", "2", "-r", "2", "-t", "1")
    assert cli.main(["bench", *shape, "--peer", "llama.cpp", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["peer"], row["test"]) for row in rows] == [
        (f"llama.cpp {quant}{how}", test)
        for quant in ("Q4_0", "Q4_K")
        for how in ("", ", no repacking")
        for test in ("pp4", "tg2")
    ]
    assert all(len(row["peer_samples"]) == 2 and row["ratio"] > 0 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def vars_of(config):
    """The values of a config.json that differ from `config_values`."""
    return {
        "hidden_size": config.D,
        "intermediate_size": config.F,
        "num_attention_heads": config.H,
        "num_key_value_heads": config.K,
        "head_dim": config.E,
        "vocab_size": config.V,
    }


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_a_gguf_file_runs_in_turns_in_its_own_types(tmp_path, capsys, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(bench_model, "SHORTEST", 1e-4)
    path, config = tmp_path / "small.gguf", peer_config()
    write_gguf(gguf, path, config, random_weights(config, 0), "Q8_0")
    options = ("-m", str(path), "--weights", "file", "-p", "4", "-n", "2", "-r", "2", "-t", "1", "--peer", "llama.cpp")
    assert cli.main(["bench", *options, "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = ("llama.cpp", "llama.cpp, no repacking")
    assert [(row["peer"], row["test"]) for row in rows] == [(name, test) for name in names for test in ("pp4", "tg2")]
    assert {(row["weights"], row["kv"]) for row in rows} == {("file", "int8")}
    matrices = [math.prod(shape) for name, shape in config.tensors().items() if "_proj.weight" in name]
    products = 2 * (sum(matrices) + config.V * config.D)
    assert rows[1]["products"] == products
    assert products * 8.5 / 8 < rows[1]["bytes"] < products * 8.5 / 8 * 1.2
