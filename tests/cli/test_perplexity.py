"""`qwq perplexity`: the words on the screen, JSON, the files of a base, and the last word after Ctrl-C."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.eval import chunks
from qwq_ref.eval.kl_base import Base
from tests.support.paths import ROOT
from tests.support.terminals import Terminal

PAGE = str(ROOT / "docs" / "glossary.md")
QUICK = ("-f", PAGE, "-c", "64", "-t", "1")
PPL = r"Final estimate: PPL = \d+\.\d{4} \+/- \d+\.\d{5}"


def run(capsys, *words):
    status = main(["perplexity", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_words_of_llama_perplexity(capsys):
    status, out, err = run(capsys, *QUICK, "--chunks", 3)
    assert status == 0
    assert re.fullmatch(PPL + "\n", out)
    speed = r"[\d.]+ tokens/s; peak memory: \d+ MiB\n"
    assert re.fullmatch(r"3 chunks of 64 tokens, 93 of them scored; " + speed, err)


def test_chunks_have_512_tokens(capsys):
    assert run(capsys, "-f", PAGE, "--chunks", 1)[2].startswith("1 chunk of 512 tokens, 255 of them scored;")


def test_a_comparison(capsys, tmp_path):
    file = tmp_path / "nano.klb"
    status, _, err = run(capsys, *QUICK, "--chunks", 3, "--kl-base", file)
    assert status == 0
    assert f"; log-probabilities: {file}; " in err
    weights = ["--weights", "q4"] if core.available() else []
    status, out, err = run(capsys, "--kl", file, *weights)
    assert status == 0
    number, percent = r" +-?\d\.?\d*(e-\d\d)?", r" +-?\d+\.\d{3} ± +\d\.\d{3} %"
    wanted = rf"""====== Perplexity statistics ======
Mean PPL\(Q\)                   :  *\d+\.\d{{6}} ±  *\d+\.\d{{6}}
Mean PPL\(base\)                :  *\d+\.\d{{6}} ±  *\d+\.\d{{6}}
Mean ln\(PPL\(Q\)/PPL\(base\)\)     : {number} ± {number}

====== KL divergence statistics ======
Mean    KLD: {number} ± {number}
Maximum KLD: {number}
99.9%   KLD: {number}
Median  KLD: {number}

====== Token probability statistics ======
Mean    Δp:{percent}
RMS Δp    :{percent}
Same top p:{percent}
"""
    assert re.fullmatch(wanted, out), out
    assert err.startswith("3 chunks of 64 tokens, 93 of them scored; base: qwq-nano, ")
    with_text = run(capsys, "--kl", file, *QUICK, "--chunks", 3, *weights)
    of_llama_cpp = run(capsys, "--kl-divergence-base", file, "--kl-divergence", *weights)
    assert out == with_text[1] == of_llama_cpp[1]


def test_json(capsys, tmp_path):
    file = tmp_path / "nano.klb"
    status, out, err = run(capsys, *QUICK, "--chunks", 2, "--kl-base", file, "--json")
    assert (status, err) == (0, "")
    values = json.loads(out)
    wanted = {"model": "qwq-nano", "ctx": 64, "bos": None, "complete": True, "base": None, "chunks": 2, "tokens": 62}
    assert wanted.items() <= values.items()
    assert values["divergence"] is None
    assert set(values["ppl"]) == {"value", "error"}
    values = json.loads(run(capsys, "--kl", file, "--json")[1])
    assert values["base"]["model"] == "qwq-nano"
    assert values["divergence"]["mean_kld"]["value"] < 1e-7
    assert set(values["divergence"]) == {
        *("ppl_base", "ln_ratio", "mean_kld", "median_kld", "percentile_999_kld", "maximum_kld"),
        *("mean_delta_p", "rms_delta_p", "same_top"),
    }


def test_standard_input(capsys):
    text = "A line of text.\r\n" * 20
    command = [sys.executable, "-m", "qwq_ref", "perplexity", "-c", "32", "-t", "1", "--json"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    values = json.loads(done.stdout)
    model = qwq_ref.load("qwq-nano", threads=1)
    plain = "\n".join(["A line of text."] * 20)
    assert values["ppl"] == dataclasses.asdict(chunks.measure(model, plain, ctx=32).ppl)
    assert values["chunks"] * 32 + values["unused_tokens"] == len(model.tokenizer.encode(plain))


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["-f", "none.txt"], 1, "none.txt: cannot be read (No such file or directory)"),
        (["-f", "none.txt", "--kl", "x"], 1, "x: cannot be opened (No such file or directory)"),
        (["-c", "7"], 2, "-c/--ctx-size: must be at least 8, got 7"),
        (["-c", "2K", "-f", PAGE], 2, "-c/--ctx-size: must be 1 to 1024"),
        (["--chunks", "0"], 2, "--chunks: must be at least 1, got 0"),
        (["--kl", "a", "--kl-base", "b"], 2, "--kl: compares with a base, and --kl-base writes one: give one of them"),
        (["--kl", "a", "--kl-divergence-base", "b"], 2, "--kl: compares with a base, and --kl-base writes one"),
        (["--kl-divergence"], 2, "--kl-divergence: needs --kl-base, and no --kl: use --kl FILE alone"),
        (["--ppl-stride", "5"], 2, "--ppl-stride: has no counterpart: chunks do not overlap"),
        (["--hellaswag"], 2, "--hellaswag: has no counterpart: `qwq eval` asks a model problems"),
        (["-f", PAGE, "--kl-base", PAGE], 1, f"{PAGE}: is another file: --kl-base replaces only its own files"),
        (["-f", PAGE, "--kl-base", "/nowhere/x"], 1, "/nowhere/x: cannot be written (No such file or directory)"),
        (["-f", PAGE, "--kl", PAGE], 1, f"{PAGE}: is not a file of `qwq perplexity --kl-base`"),
    ],
)
def test_a_fault_is_one_line(words, status, problem, capsys):
    found, out, err = run(capsys, *words)
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert err.startswith(f"qwq: {problem}")


def test_a_long_text_takes_little_memory(tmp_path):
    def peak(copies):
        (tmp_path / "text").write_text("12+34 is 46, and 46-12 is 34. " * copies)
        words = ["perplexity", "-m", "qwq-nano", "-f", str(tmp_path / "text"), "--chunks", "1", "--json"]
        done = subprocess.run([sys.executable, "-m", "qwq_ref", *words], cwd=ROOT, capture_output=True, check=True)
        return json.loads(done.stdout)["peak_memory_bytes"]

    assert peak(20_000) - peak(100) < 40 << 20


def test_a_short_text(capsys, tmp_path):
    (tmp_path / "x").write_text("A line.")
    status, out, err = run(capsys, "-f", tmp_path / "x", "--kl-base", tmp_path / "base")
    assert (status, out) == (1, "")
    assert re.fullmatch(
        rf"qwq: {tmp_path}/x: has \d tokens, and a chunk 512: take a longer text, or shorter chunks\n", err
    )
    assert not (tmp_path / "base").exists()


def test_a_disk_without_room(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("qwq_ref.host.disk.free_bytes", lambda folder: 1000)
    status, out, err = run(capsys, *QUICK, "--kl-base", tmp_path / "base")
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"qwq: {tmp_path}: needs [\d.]+ MiB on its disk, which has 0.98 KiB left\n", err)


@pytest.mark.parametrize("json_", [False, True])
def test_ctrl_c_tells_the_figures_so_far(json_, capsys, monkeypatch, tmp_path):
    file, words = tmp_path / "base", ["--json"] * json_
    whole = run(capsys, *QUICK, "--chunks", 2)[1]

    def stop(self, ids, progress=None):
        if self.chunks == 2:
            raise KeyboardInterrupt
        add(self, ids, progress)

    add = chunks.Measurement.add
    monkeypatch.setattr(chunks.Measurement, "add", stop)
    status, out, err = run(capsys, *QUICK, "--kl-base", file, *words)
    assert status == 130
    assert re.fullmatch(r"qwq: interrupted: after 2 chunks: PPL = [\d.]+ \+/- [\d.]+", err.splitlines()[-1])
    if json_:
        assert json.loads(out)["complete"] is False
        assert json.loads(out)["chunks"] == 2
    else:
        assert out == whole
    with Base(file) as base:
        assert base.chunks == 2


def test_ctrl_c_before_a_chunk(capsys, monkeypatch, tmp_path):
    def stop(self, ids, progress=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks.Measurement, "add", stop)
    status, out, err = run(capsys, *QUICK, "--kl-base", tmp_path / "base")
    assert (status, out, err.splitlines()[-1]) == (130, "", "qwq: interrupted: no chunk was scored")
    assert [*tmp_path.iterdir()] == []


def test_an_error_keeps_the_figures(capsys, tmp_path):
    run(capsys, *QUICK, "--chunks", 2, "--kl-base", tmp_path / "base")
    status, out, err = run(capsys, *QUICK, "--kl", tmp_path / "base")
    assert status == 1
    assert "Mean    KLD" in out
    last = f"qwq: {tmp_path / 'base'}: tokens: end after chunk 2, where the text goes on"
    assert err.splitlines()[-1] == last


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_and_the_result_on_a_terminal(columns):
    program = f"""
import sys
from qwq_ref.cli import main, progress
progress._WAIT = progress._EVERY = 0
sys.exit(main(["perplexity", "-f", {PAGE!r}, "-c", "128", "-t", "1"]))
"""
    terminal = Terminal(columns=columns, command=[sys.executable, "-c", program])
    status, lines = terminal.end()
    lines = [line for line in lines if line]
    assert status == 0
    assert re.fullmatch(PPL, lines[0])
    assert max(map(len, lines)) <= columns
    assert not re.search(r"\d+%", "".join(lines))
    drawn = re.findall(r"\r(PPL[^\r\n\x1b]+)\x1b\[K", terminal.raw)
    shown = r"PPL \d+\.\d{4}: +\d+%\|.*\| \d+/\d+ chunks, .*(/s|s each), \d\d:\d\d left"
    assert any(re.fullmatch(shown, bar) for bar in drawn), drawn
