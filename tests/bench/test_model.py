"""qwq bench of whole models: what it says is what was run, and its arithmetic is right. No speed matters here."""

import csv
import io
import json
import math
import re
from statistics import median

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwq_ref import cli, core
from qwq_ref.bench import measure
from qwq_ref.bench import model as bench_model
from qwq_ref.bench.measure import Ceilings
from qwq_ref.bench.model import Engine, Trial, work
from qwq_ref.bench.weights import random_weights
from qwq_ref.config import Config
from qwq_ref.core import attention
from qwq_ref.engine import backends
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.plan import model_bytes
from qwq_ref.forms import FORMS
from tests.support.models import config_values
from tests.support.models import random_weights as random_weights_of
from tests.support.paths import QWQ_CONFIG

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
QWQ = Config.from_file(QWQ_CONFIG)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(bench_model, "SHORTEST", 1e-4)


@pytest.fixture
def shape(tmp_path):
    """A config.json of a small model."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config_values(max_position_embeddings=2000)))
    return str(tmp_path / "tiny" / "config.json")


def bench(capsys, *arguments):
    status = cli.main(["bench", *arguments])
    return status, *capsys.readouterr()


def facts_of(capsys, *arguments):
    status, out, _ = bench(capsys, *arguments, "-o", "json")
    assert status == 0
    return json.loads(out)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_runs(form, shape, capsys):
    arguments = ("--shape", shape, "--weights", form, "-p", "5,9", "-n", "3", "-d", "0,7", "-r", "3", "-t", "1,2")
    rows = facts_of(capsys, *arguments, "--kv", "fp32,int8")["rows"]
    assert [(row["kv"], row["threads"], row["test"]) for row in rows] == [
        (kv, threads, f"{test}{depth}")
        for kv in ("fp32", "int8")
        for threads in (1, 2)
        for depth in ("", " @ d7")
        for test in ("pp5", "pp9", "tg3")
    ]
    for row in rows:
        assert row["model"] == "tiny"
        assert len(row["samples"]) == 3
        assert row["tok_s"] == median(row["samples"]) > 0
        assert row["tok_s_stddev"] == pytest.approx(np.std(row["samples"], ddof=1))
        limits = {
            "compute": row["products"] / row["peak"] + row["scores"] / row["attention_peak"],
            "memory": row["bytes"] / row["read"],
        }
        assert row["bound"] == max(limits, key=limits.get)
        assert row["ceiling_tok_s"] == row["tokens"] / limits[row["bound"]]
        assert row["share"] == row["tok_s"] / row["ceiling_tok_s"]
        assert row["read"] == median(row["read_samples"])
        assert row["peer"] is None


def test_without_an_argument_the_shipped_model(capsys):
    rows = facts_of(capsys, "-p", "8", "-n", "2", "-r", "1", "-t", "1")["rows"]
    assert [(row["model"], row["weights"], row["kv"], row["test"]) for row in rows] == [
        ("qwq-nano", "q4", "int8", "pp8"),
        ("qwq-nano", "q4", "int8", "tg2"),
    ]


def test_work_of_the_real_shape():
    """By hand: 31.2 G weights in layers and 0.78 G in the head; 4.25 and 8.25 bits a weight; 268 bytes a KV head."""
    rest = 5120 * 5120 + 3 * 5120 * 27648
    layers = 64 * (5120 * (40 + 16) * 128 + rest)
    head = 152064 * 5120
    prompt, decode = work(QWQ, "q4", "int8", Trial("pp", 512, 0)), work(QWQ, "q4", "int8", Trial("tg", 3, 1000))
    assert prompt.products == 512 * layers - 511 * rest + head, "one row goes on from the last layer's keys"
    assert prompt.scores == 2 * 40 * 128 * (63 * 512 * 513 // 2 + 512)
    weights = layers * 4.25 / 8 + head * 8.25 / 8
    assert prompt.bytes == pytest.approx(weights + 512 * (2 * 5120 + 64 * 8 * 268), rel=1e-6)
    assert decode.products == 3 * (layers + head)
    assert decode.scores == 64 * 2 * 40 * 128 * (1001 + 1002 + 1003)
    cache = 64 * 8 * 268 * (1001 + 1002 + 1003)
    assert decode.bytes == pytest.approx(3 * (weights + 2 * 5120) + cache, rel=1e-6)
    exact = work(QWQ, "fp32", "fp32", Trial("tg", 1, 0))
    assert exact.bytes == 4 * (layers + head + 5120) + 64 * 8 * 8 * 128


@pytest.mark.parametrize("form", FORMS)
def test_random_weights_are_like_a_models(form):
    """As many bytes as the arithmetic says, and results of the size of a trained model's."""
    config = Config.from_dict(config_values(hidden_size=512, intermediate_size=1024, num_hidden_layers=3))
    counts = []
    weights = random_weights(config, form, counts.append)
    assert sum(counts) == model_bytes(config, form)
    backend = CoreBackend(config, weights, 64, "int8", threads=2)
    logits = backends.logits(backend, np.arange(40) % config.V)
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3


def test_what_is_timed_is_what_is_said(shape):
    """A prompt in the engine's chunks, decoding one by one, behind a context of its depth."""
    config = Config.from_file(shape)
    backend = CoreBackend(config, random_weights(config, "q4"), 1500, "int8")
    steps, run = [], backend.run

    def spy(ids, sequence, rows, **more):
        steps.append((len(ids), sequence.length))
        return run(ids, sequence, rows, **more)

    backend.run = spy
    engine = Engine(backend)
    assert engine.prompt(700, 100) > 0
    assert engine.decode(3, 200) > 0
    assert engine.prompt(5, 0) > 0
    assert steps == [(512, 100), (188, 612), (1, 200), (1, 201), (1, 202), (5, 0)]


def test_what_lies_before_is_filled_in_once(shape, monkeypatch):
    config = Config.from_file(shape)
    engine = Engine(CoreBackend(config, random_weights(config, "q4"), 1500, "int8"))
    appended, append = [], attention.append

    def spy(kv, k, v, pos, **options):
        appended.append((pos, len(k)))
        append(kv, k, v, pos, **options)

    monkeypatch.setattr(attention, "append", spy)
    for depth in (1100, 1100, 50, 1300):
        engine.decode(1, depth)
    assert appended == [pair for pair in ((0, 1024), (1024, 76), (1100, 200)) for _ in range(config.L)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.0.mlp.down_proj.weight", r"the output of layer 0, at position \d+, reaches .*: float32 cannot"),
        ("lm_head.weight", r"the logits hold \w+, and all layers are finite: the last norm or the output head is at"),
    ],
)
def test_a_model_whose_logits_are_no_numbers_is_not_measured(tmp_path, capsys, name, words):
    """Finite weights, of which a step makes numbers beyond float32."""
    config = Config.from_dict(config_values())
    weights = random_weights_of(config, 1)
    weights[name][:] = np.sign(weights[name]) * np.float32(3e38 if name == "lm_head.weight" else 1e28)
    folder = tmp_path / "big"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_values()))
    arguments = ("-m", str(folder), "--weights", "fp32", "-r", "1", "-t", "1")
    for sizes, test in ((("-p", "3", "-n", "0"), "pp3"), (("-p", "0", "-n", "2"), "tg2")):
        status, out, err = bench(capsys, *arguments, *sizes)
        assert (status, out) == (1, "")
        assert re.fullmatch(rf"qwq: big: {test}: {words}.*\n", err)


class Slow:
    """A peer that takes a second for each token."""

    def __init__(self):
        self.asked = []

    def prompt(self, tokens, depth):
        self.asked.append(("pp", tokens, depth))
        return float(tokens)

    def decode(self, tokens, depth):
        self.asked.append(("tg", tokens, depth))
        return float(tokens)


def test_a_peer_runs_in_turns(shape):
    config = Config.from_file(shape)
    backend = CoreBackend(config, random_weights(config, "q4"), 64)
    peer, tests = Slow(), [Trial("pp", 9, 0), Trial("tg", 4, 3)]
    for row, test in zip(bench_model.rows("x", backend, tests, 3, Ceilings(), ("slow", peer)), tests, strict=True):
        assert row.peer == "slow"
        assert row.peer_samples == [1.0, 1.0, 1.0]
        assert row.ratio == median(row.samples) == row.tok_s
        assert peer.asked[-3:] == [(test.kind, test.tokens, test.depth)] * 3


def test_forms_for_people_and_programs(shape, capsys):
    arguments = ("--shape", shape, "--layers", "1", "-p", "4", "-n", "2", "-r", "2", "-t", "1", "--isa", "scalar")
    status, out, _ = bench(capsys, *arguments, "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0
    assert [row["test"] for row in rows] == ["pp4", "tg2"]
    assert all(math.isfinite(float(row["tok_s"])) for row in rows)
    assert rows[0]["model"] == "tiny, 1 layer"
    assert "samples" not in rows[0]
    _, out, _ = bench(capsys, *arguments)
    shared, head, *lines = out.splitlines()
    assert shared == "model tiny, 1 layer, isa scalar, threads 1"
    assert head.split()[:3] == ["weights", "KV", "test"]
    assert "ratio" not in head, "no peer, no column"
    assert "share" not in head, "scalar code has no ceiling"
    assert lines[0].startswith("q4")
    assert max(map(len, lines[:2])) <= 80
    _, out, _ = bench(capsys, *arguments, "-o", "md")
    assert out.startswith("| model | weights | KV | isa | threads | test | tokens/s |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "0", "-n", "0"], "qwq: -p/--n-prompt: is 0, and so is -n"),
        (["-p", "-1"], "qwq: -p/--n-prompt: must be at least 0, got -1"),
        (["-d", "x"], "qwq: -d/--n-depth: must be an integer, got x"),
        (["-r", "0"], "qwq: -r/--repeats: must be at least 1"),
        (["--weights", "q3"], "qwq: --weights: must be one of fp32, bf16, q8, q4, file, got q3"),
        (["--weights", "file", "--shape", "qwq-32b"], "qwq: --weights: file is for the types of a --model"),
        (["--kv", "q8"], "qwq: --kv: must be one of fp32, int8, got q8"),
        (["--shape", "qwq-32b", "--layers", "65"], "qwq: --layers: must be 1 to 64"),
        (["--layers", "1"], "qwq: --layers: must be 1 to"),
        (["-m", "qwq-nano", "--shape", "qwq-32b"], "qwq: --shape: is for random weights"),
        (["--peer", "llama.cpp"], "qwq: --peer: needs --shape"),
        (["-d", "1000000"], "qwq: -d/--n-depth: 1000512 tokens are more than the model's"),
        (["--isa", "mmx"], "qwq: --isa: mmx cannot run here"),
    ],
)
def test_wrong_uses_are_one_line(arguments, message, capsys):
    status, out, err = bench(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_what_does_not_fit_is_refused_with_the_sum(capsys, monkeypatch):
    monkeypatch.setattr("qwq_ref.host.memory.available_bytes", lambda: 8 << 30)
    monkeypatch.setattr("qwq_ref.bench.weights.random_weights", lambda *a: pytest.fail("memory was taken"))
    status, out, err = bench(capsys, "--shape", "qwq-32b")
    assert (status, out) == (1, "")
    assert err.startswith("qwq: qwq-32b: needs 17.7")


def test_what_is_measured_is_printed_after_ctrl_c(shape, capsys, monkeypatch):
    calls, decode = [], Engine.decode

    def interrupted(self, tokens, depth):
        calls.append(depth)
        if depth:
            raise KeyboardInterrupt
        return decode(self, tokens, depth)

    monkeypatch.setattr(Engine, "decode", interrupted)
    status, out, _ = bench(capsys, "--shape", shape, "-p", "0", "-n", "2", "-d", "0,4", "-r", "1")
    assert status == 130
    assert out.splitlines()[2].split()[2] == "tg2"
