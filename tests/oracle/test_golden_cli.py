"""`qwq golden` on the command line."""

import functools
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from qwq_ref import oracle
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.oracle import Golden
from qwq_ref.oracle.explain.mistakes import MISTAKES
from qwq_ref.oracle.graph import (
    tap_names,
)
from qwq_ref.text import load_tokenizer
from qwq_ref.text.template import load_chat_template
from tests.support.packs import (
    CONFIG,
    DECODE,
    IDS,
    LAST,
    PHASES,
    QROPE,
    WEIGHTS,
    all_cases,
    contents,
    manifest_of,
    rewrite,
    set_value,
    spec_run,
)


def fails(result, status, *words):
    """One line on stderr, nothing on stdout."""
    assert result[0] == status, result
    assert result[1] == ""
    assert len(result[2].splitlines()) == 1, result[2]
    assert all(word in result[2] for word in words), result[2]


def test_record_and_compare(qwq, recorded, tmp_path):
    out = tmp_path / "pack"
    ids = ",".join(map(str, IDS))
    status, stdout, stderr = qwq("record", "-m", recorded / "model", "--ids", ids, "--decode", DECODE, "-o", out)
    assert (status, stdout) == (0, "")
    assert stderr.startswith(f"{out}: 5 tokens and 2 steps of decoding, ")
    assert stderr.splitlines()[1:] == [f"next: qwq golden compare {out} TAPS -m {recorded / 'model'}"]
    mine, wanted = contents(out), contents(recorded)
    assert all(mine[name] == wanted[name] for name in mine if name != "manifest.json")
    assert manifest_of(out).model == "model"
    status, stdout, stderr = qwq("compare", out, recorded, "-m", recorded / "model")
    assert (status, stderr) == (0, "")
    assert f"golden: {out} (model, 5 tokens + 2 steps of decoding)" in stdout
    assert "PASS" in stdout


def test_a_divergence_is_exit_status_3(qwq, recorded, wrong, tmp_path):
    status, stdout, stderr = qwq("compare", recorded, wrong / "wrong.npz")
    assert (status, stderr) == (3, "")
    assert f"FAIL: first divergence at {LAST}mlp.act, in the prompt" in stdout
    assert "cause: relu" in stdout
    status, stdout, _ = qwq("compare", recorded, wrong / "wrong.npz", "--no-explain")
    assert (status, "relu" in stdout) == (3, False)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("html", "json", "junit")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    status, stdout, stderr = qwq("compare", recorded, wrong / "wrong.npz", *options)
    assert (status, stderr) == (3, "")
    assert "FAIL" in stdout
    facts = json.loads(files["json"].read_text())
    assert (facts["passed"], facts["first"]["tap"], facts["causes"][0]["name"]) == (False, f"{LAST}mlp.act", "relu")
    assert files["html"].read_text().lstrip().startswith("<!")
    assert "relu" in files["html"].read_text()
    suite = ElementTree.parse(files["junit"]).getroot().find("testsuite")
    cases = suite.findall("testcase")
    n = len(tap_names(CONFIG)) * len(PHASES)
    counts = facts["counts"]
    bad = n - 1 - counts["ok"]
    assert len(cases) == n
    assert [int(suite.get(key)) for key in ("tests", "failures", "skipped")] == [n, bad, 1]
    assert sum(case.find("failure") is not None for case in cases) == bad >= len(PHASES)
    skipped = [(case.get("classname"), case.get("name")) for case in cases if case.find("skipped") is not None]
    assert skipped == [("prompt", QROPE)]


def test_json_alone_is_on_stdout(qwq, recorded, wrong):
    for name, wanted in (("right", 0), ("wrong", 3)):
        status, stdout, stderr = qwq("compare", recorded, wrong / f"{name}.npz", "--json", "-")
        assert (status, stderr) == (wanted, "")
        facts = json.loads(stdout)
        assert facts["passed"] == (wanted == 0)
        assert {tap["status"] for tap in facts["taps"]} <= {"ok", "introduced", "propagated"}


def test_coverage_is_said_where_asked(qwq, recorded, wrong):
    _, stdout, _ = qwq("compare", recorded, wrong / "wrong.npz", "--coverage")
    assert "cannot be told from these tensors" in stdout


@pytest.mark.parametrize("option", ["--html", "--json", "--junit"])
def test_reports_that_cannot_be_written(qwq, recorded, wrong, tmp_path, option):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "no" / "x", tmp_path / "file" / "x", tmp_path):
        result = qwq("compare", recorded, wrong / "right.npz", option, place)
        assert result[0] == 1
        assert result[2].startswith(f"qwq: {place}: cannot be written (")
        assert len(result[2].splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_precisions_on_the_command_line(qwq, recorded, tmp_path):
    seen = spec_run(CONFIG, WEIGHTS, PHASES, "bfloat16")
    np.savez(tmp_path / "x.npz", **{f"{phase}/{tap}": x for phase, taps in seen.items() for tap, x in taps.items()})
    assert "taps in bf16 (told from the values)" in qwq("compare", recorded, tmp_path / "x.npz")[1]
    assert qwq("compare", recorded, tmp_path / "x.npz", "--precision", "fp32")[0] == 3
    assert qwq("compare", recorded, tmp_path / "x.npz", "--precision", "bf16")[0] == 0
    status, stdout, _ = qwq("compare", recorded, tmp_path / "x.npz", "--precision", "lm_head=fp32", "--json", "-")
    facts = json.loads(stdout)
    assert status == 3
    assert {tap["tap"] for tap in facts["taps"] if tap["precision"] == "fp32"} == {"lm_head"}
    fails(qwq("compare", recorded, tmp_path / "x.npz", "--precision", "fp8"), 2, "precision", "must be one of fp32")


BAD = {
    "no action": ([], 2, ["required: ACTION"]),
    "an unknown action": (["measure"], 2, ["measure: is not an action of qwq golden; there are record, compare"]),
    "an action misspelt": (
        ["cmpare", "gqa", "x"],
        2,
        ["cmpare: is not an action of qwq golden (did you mean compare?)"],
    ),
    "a pack misspelt": (
        ["compare", "gaq", "x"],
        1,
        ["gaq: is not a folder, and not a shipped pack (did you mean gqa?)"],
    ),
    "ids and a prompt": (["record", "--ids", "1", "hi", "-o", "OUT"], 2, ["--ids: takes the place of the prompt"]),
    "ids and a file": (["record", "--ids", "1", "-f", "x", "-o", "OUT"], 2, ["-f/--file: has no effect with --ids"]),
    "no place": (["record", "x"], 2, ["required: -o"]),
    "ids of text": (["record", "--ids", "1,x", "-o", "OUT"], 2, ["ids: must be an integer, got x"]),
    "an id too large": (["record", "--ids", "1,999999", "-o", "OUT"], 2, ["--ids: must be at least one id"]),
    "all steps": (["record", "--ids", "1,2", "--decode", "2", "-o", "OUT"], 2, ["decode: must leave a prompt"]),
    "an unknown tap": (["record", "--ids", "1", "--taps", "*.x", "-o", "OUT"], 2, ["taps: *.x matches no tap"]),
    "a size of no tap": (
        ["record", "--ids", "1", "--size", "lm_hed=last", "-o", "OUT"],
        2,
        ["--size: lm_hed matches no tap (did you mean lm_head?)"],
    ),
    "a precision of no tap": (
        ["compare", "gqa", "GQA", "--precision", "lm_hed=fp32"],
        2,
        ["--precision: lm_hed is no tap of this config (did you mean lm_head?)"],
    ),
    "an unknown precision of a tap": (
        ["compare", "gqa", "GQA", "--precision", "lm_head=fp8"],
        2,
        ["--precision: of lm_head must be one of fp32, bf16, fp16, got fp8"],
    ),
    "an empty place": (["record", "--ids", "1", "-o", ""], 2, ["-o/--out: is empty"]),
    "an empty pack": (["compare", "", "GQA"], 2, ["golden: is empty"]),
    "an unknown size": (["record", "--ids", "1", "--size", "lm_head=all", "-o", "OUT"], 2, ["size: must be one of"]),
    "a layer of text": (["record", "--ids", "1", "--layers", "one", "-o", "OUT"], 2, ["layers: must be an integer"]),
    "a layer too many": (["record", "--ids", "1", "--layers", "99", "-o", "OUT"], 2, ["layers: must be -"]),
    "memory of text": (
        ["record", "--ids", "1", "--max-memory", "much", "-o", "OUT"],
        2,
        ["max-memory: must be a size"],
    ),
    "too little memory": (["record", "--ids", "1", "--max-memory", "1M", "-o", "OUT"], 1, ["qwq-nano: needs "]),
    "no threads": (["record", "--ids", "1", "-t", "0", "-o", "OUT"], 2, ["threads: must be at least 1"]),
    "an empty prompt": (["record", " ", "-o", "OUT"], 2, ["prompt: is empty"]),
    "no such model": (["record", "-m", "./nothing", "--ids", "1", "-o", "OUT"], 1, ["nothing"]),
    "a folder that exists": (["record", "--ids", "1", "-o", "HERE"], 2, ["exists already"]),
    "a folder in a file": (["record", "--ids", "1", "-o", "FILE/x"], 1, ["cannot be written (Not a directory)"]),
    "no such pack": (["compare", "OUT", "OUT"], 1, ["is not a folder"]),
    "no such candidate": (["compare", "gqa", "OUT"], 1, ["no such file or folder"]),
    "a candidate of nothing": (["compare", "gqa", "HERE"], 1, ["holds no tensor"]),
    "a model that is another": (
        ["compare", "gqa", "GQA", "-m", "qwq-nano"],
        1,
        ["gqa: model: was recorded from another"],
    ),
    "vectors that exist": (["vectors", "-o", "HERE"], 2, ["exists already"]),
    "vectors in a file": (["vectors", "-o", "FILE/x"], 1, ["cannot be written (Not a directory)"]),
    "export of nothing": (["export", "OUT", "-o", "OUT"], 1, ["is not a folder"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use(qwq, tmp_path, case):
    arguments, status, words = BAD[case]
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "here").mkdir()
    places = {"OUT": tmp_path / "out", "HERE": tmp_path / "here", "FILE": file, "GQA": oracle.path("gqa")}
    named = [functools.reduce(lambda a, k: a.replace(k, str(places[k])), places, argument) for argument in arguments]
    fails(qwq(*named), status, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "here"}
    assert not list((tmp_path / "here").iterdir())


def test_a_broken_pack_is_exit_status_1(qwq, pack, wrong):
    rewrite(pack / "prompt.safetensors", set_value(QROPE, 0, np.nan))
    fails(qwq("compare", pack, wrong / "right.npz"), 1, f"qwq: {pack}/prompt.safetensors: ")
    (pack / "manifest.json").write_text("{}")
    fails(qwq("compare", pack, wrong / "right.npz"), 1, f"qwq: {pack}/manifest.json: format: must be qwq-golden")
    fails(qwq("export", pack, "-o", pack / "x.npz"), 1, "format: must be qwq-golden")


@pytest.fixture(scope="module")
def nano():
    folder = resolve("qwq-nano")
    with Checkpoint.open(folder) as checkpoint:
        config = checkpoint.config
    return folder, config, load_tokenizer(folder, config.vocab_size)


def test_a_text_is_tokenised(qwq, nano, tmp_path):
    folder, _, tokenizer = nano
    small = ["--taps", "lm_head", "--size", "last"]
    question = "What is 2+3?"
    (tmp_path / "prompt.txt").write_text(question)
    plain = tokenizer.encode(question)
    chat = load_chat_template(folder, None).encode(tokenizer, [{"role": "user", "content": question}])
    assert plain != chat
    for i, (arguments, wanted) in enumerate(
        [
            ([question], plain),
            (["-p", question], plain),
            (["-f", tmp_path / "prompt.txt"], plain),
            (["--chat", question, "-t", 1], chat),
            (["--ids", "5, 6,7"], [5, 6, 7]),
        ]
    ):
        assert qwq("record", *arguments, *small, "-o", tmp_path / str(i))[0] == 0
        assert manifest_of(tmp_path / str(i)).token_ids == wanted
    assert qwq("record", *small, "-o", tmp_path / "piped", text=question)[0] == 0
    assert manifest_of(tmp_path / "piped").token_ids == plain
    assert manifest_of(tmp_path / "piped").model == "qwq-nano"


def test_the_oracles_threads_are_its_own(qwq, tmp_path):
    """BLAS has one thread with every option, and the number of threads changes no byte."""
    for threads in (1, 3):
        qwq("record", "--ids", "1,2,3", "--decode", "1", "-o", tmp_path / f"{threads}", "-t", threads)
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    for file in ("prompt.safetensors", "decode-0.safetensors", "manifest.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()


def kept_by(qwq, recorded, out, *options):
    assert qwq("record", "-m", recorded / "model", "--ids", "1,2,3", "-o", out, *options)[0] == 0
    with Golden.open(out) as golden:
        return golden.manifest.sizes


def test_sizes_on_the_command_line(qwq, recorded, tmp_path):
    """A size without a pattern is the default at any place; without a default, taps are kept whole."""
    names = tap_names(CONFIG)
    mlp = [tap for tap in names if ".mlp." in tap]
    for i, (options, rest) in enumerate(
        [
            (["--size", "*.mlp.*=sketch"], "full"),
            (["--size", "*.mlp.*=sketch", "--size", "last"], "last"),
            (["--size", "last", "--size", "*.mlp.*=sketch"], "last"),
            (["--size", "*.mlp.*=sketch", "--size", "*.mlp.act=stats", "--size", "last"], "last"),
        ]
    ):
        kept = kept_by(qwq, recorded, tmp_path / str(i), *options)
        assert kept == dict.fromkeys(names, rest) | dict.fromkeys(mlp, "sketch")
    kept = kept_by(qwq, recorded, tmp_path / "order", "--size", "*.mlp.act=stats", "--size", "*.mlp.*=sketch")
    assert (kept[f"{LAST}mlp.act"], kept[f"{LAST}mlp.up_proj"], kept["lm_head"]) == ("stats", "sketch", "full")


def test_layers_and_taps_on_the_command_line(qwq, recorded, tmp_path):
    kept = kept_by(qwq, recorded, tmp_path / "a", "--layers", "-1")
    assert set(kept) == {tap for tap in tap_names(CONFIG) if "layers.0" not in tap}
    kept = kept_by(qwq, recorded, tmp_path / "b", "--layers=-1,0", "--taps", "*.act", "--taps", "lm_head")
    assert set(kept) == {"model.layers.0.mlp.act", f"{LAST}mlp.act", "lm_head"}


def test_the_model_is_put_into_the_pack(qwq, recorded, tmp_path):
    assert kept_by(qwq, recorded, tmp_path / "a", "--include-weights", "--max-memory", "8G")
    assert contents(tmp_path / "a" / "model") == contents(recorded / "model")


def test_rope_scaling_on_the_command_line(qwq, recorded, tmp_path):
    kept_by(qwq, recorded, tmp_path / "a", "--rope-scaling", "yarn", "--rope-scale", "2", "--yarn-orig-ctx", "64")
    with Golden.open(tmp_path / "a") as golden:
        assert (golden.manifest.config.rope.type, golden.manifest.config.rope.factor) == ("yarn", 2)


def test_list_and_mistakes(qwq):
    status, stdout, stderr = qwq("list")
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert [line.split()[0] for line in lines[::2]] == oracle.conformance()
    assert [Path(line.strip()) for line in lines[1::2]] == [oracle.path(name) for name in oracle.conformance()]
    status, stdout, stderr = qwq("mistakes")
    assert (status, stderr) == (0, "")
    assert [line.split()[0] for line in stdout.splitlines()] == [mistake.name for mistake in MISTAKES]


def test_export(qwq, tmp_path):
    assert qwq("export", "tied", "-o", tmp_path / "x.npz") == (0, "", "")
    with np.load(tmp_path / "x.npz") as archive, Golden.open(oracle.path("tied")) as golden:
        assert archive["token_ids"].tolist() == golden.manifest.token_ids
        names = {f"{phase.name}/{tap}" for phase in golden.manifest.phases for tap in golden.manifest.sizes}
        assert set(archive.files) == names | {"token_ids"}
        for name in names:
            assert np.array_equal(archive[name], golden.read(*name.split("/")))
    assert qwq("compare", "tied", tmp_path / "x.npz")[0] == 0


def test_vectors_on_the_command_line(qwq, written, outputs, tmp_path):
    status, stdout, stderr = qwq("vectors", "-o", tmp_path / "v")
    assert (status, stdout, stderr) == (0, "", f"{tmp_path / 'v'}: {len(all_cases())} cases\n")
    assert contents(tmp_path / "v") == contents(written)
    status, stdout, _ = qwq("compare", written, outputs)
    assert (status, stdout.splitlines()[-1].split(":")[0]) == (0, "PASS")
    theirs = Path(shutil.copytree(outputs, tmp_path / "theirs"))
    name = next(case.name for case in all_cases() if case.op == "embed")
    np.save(theirs / "embed" / f"{name}.npy", np.zeros(3, np.float32))
    status, stdout, _ = qwq("compare", written, theirs)
    assert (status, stdout.splitlines()[0]) == (3, f"embed, {name}: shape [3], not [4, 24]")
    (tmp_path / "none").mkdir()
    fails(qwq("compare", written, tmp_path / "none"), 1, "holds no outputs")
    fails(qwq("compare", written, outputs, "--precision", "fp8"), 2, "precision: must be one of")


def test_as_a_program(recorded, wrong, tmp_path):
    """stdout holds only the result."""
    command = [sys.executable, "-m", "qwq_ref", "golden", "compare", recorded, wrong / "wrong.npz", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["causes"][0]["name"] == "relu"


def test_an_export_that_cannot_be_written_is_one_line(qwq, tmp_path):
    status, out, err = qwq("export", "gqa", "-o", tmp_path / "no" / "such.npz")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "cannot be written" in err
