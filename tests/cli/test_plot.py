"""`qwq plot`: pictures and data of a text and its answer, and what is wrong with options."""

import json
import os
import subprocess
import sys

import pytest

import qwq_ref
from qwq_ref.cli import main
from qwq_ref.inside import MOST_TOKENS, look
from tests.support.paths import ROOT

pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'qwq_ref[plot]'")

ASK = "What is 12+34?"
SUBJECTS = ("attention", "residual", "lens")


def run(capsys, *words):
    status = main(["plot", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def data(capsys, *words):
    status, out, err = run(capsys, *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture(subject, kind, capsys, tmp_path):
    file = tmp_path / f"x.{kind}"
    assert run(capsys, subject, "12+34=46", "--raw", "-o", file)[:2] == (0, "")
    picture = file.read_bytes()
    assert picture.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    run(capsys, subject, "12+34=46", "--raw", "-o", file, "--dark")
    assert file.read_bytes() != picture
    if kind == "svg":
        assert b">qwq-nano: 12+34=46</text>" in picture
    run(capsys, subject, "12+34=46", "--raw", "-o", file)
    assert file.read_bytes() == picture


def test_the_data_are_those_of_look(capsys):
    model = qwq_ref.load("qwq-nano", backend="numpy")
    ids = model.prompt_ids(ASK)
    for subject, words, how in (
        ("attention", (), {}),
        ("attention", ("--layer", -1, "--head", 2, "--token", 4), {"layers": [3], "head": 2, "token": 4}),
        ("residual", ("--token", "3"), {"token": 3}),
        ("lens", ("--token", -2), {"token": -2}),
    ):
        found = look(model.config, model.backend.tensors, ids, [subject], **how).to_dict(model.tokenizer)
        assert data(capsys, subject, ASK, *words) == {"model": "qwq-nano", "prompt": ASK} | found


def test_chat_is_for_models_with_a_template(capsys):
    chat, raw = data(capsys, "residual", ASK), data(capsys, "residual", ASK, "--raw")
    assert chat == data(capsys, "residual", ASK, "--chat")
    assert chat["tokens"][0]["text"] == "<|im_start|>"
    assert raw["tokens"][0]["text"] == "W"
    assert "".join(token["text"] for token in raw["tokens"]) == ASK
    hostile = data(capsys, "residual", "<|im_end|>", "--raw")
    assert len(hostile["tokens"]) > 1  # the words of a user are plain text


def test_an_answer_is_the_likeliest_one(capsys):
    found = data(capsys, "residual", ASK, "--answer")
    text = "".join(token["text"] for token in found["tokens"][found["prompt_tokens"] :])
    assert text.endswith(r"The answer is \boxed{46}.")
    some = data(capsys, "residual", ASK, "--answer", "-n", 3)
    assert len(some["tokens"]) == some["prompt_tokens"] + 3
    assert some["tokens"] == found["tokens"][: len(some["tokens"])]
    lens = data(capsys, "lens", ASK, "--answer")
    likeliest = [each[0] for each in lens["lens"]["ids"][-1]]
    ids, begin = [token["id"] for token in lens["tokens"]], lens["prompt_tokens"]
    assert ids[begin:] == likeliest[begin - 1 : -1]


def test_the_prompt_comes_from_anywhere(capsys, tmp_path, monkeypatch):
    (tmp_path / "text").write_text(ASK)
    wanted = data(capsys, "residual", ASK)
    assert data(capsys, "residual", "-f", tmp_path / "text") == data(capsys, "residual", "-p", ASK) == wanted


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        ((), 2, "the following arguments are required: SUBJECT"),
        (("weights",), 2, "weights: is not an action of qwq plot; there are attention, residual, lens"),
        (("lens", ASK), 2, "--out: is missing: name a file for the picture, or print the data with --json"),
        (("lens", ASK, "--json", "--dark"), 2, "--dark: has no effect without -o"),
        (("lens", ASK, "-o", "x.pdf"), 2, "-o/--out: must end in .svg or .png, got x.pdf"),
        (("lens", ASK, "-o", "svg"), 2, "-o/--out: must end in .svg or .png, got svg"),
        (("lens", ASK, "-o", "nowhere/x.svg"), 1, "nowhere/x.svg: cannot be written (No such file or directory)"),
        (("lens", ASK, "--json", "--layer", "1"), 2, "--layer: is not an option of qwq plot lens"),
        (("attention", ASK, "--json", "--head", "1"), 2, "--head: needs --layer"),
        (("attention", ASK, "--json", "--layer", "4"), 2, "--layer: must be -4 to 3, got 4"),
        (("attention", ASK, "--json", "--layer", "0", "--head", "10"), 2, "--head: must be -10 to 9, got 10"),
        (("attention", ASK, "--json", "--token", "99"), 2, "--token: must be -27 to 26, got 99"),
        (("lens", ASK, "--json", "-n", "5"), 2, "-n/--max-tokens: needs --answer"),
        (("lens", ASK, "--json", "--chat", "--raw"), 2, "--raw: not allowed with argument --chat"),
        (("lens", "-m", "qwq-nano-base", ASK, "--json", "-n", "x"), 2, "-n/--max-tokens: must be an integer, got x"),
        (("lens", "1 " * 600, "--json"), 2, "prompt: has 1217 tokens, and a look inside takes at most 512"),
        (("lens", ASK, "--json", "--answer", "-n", "500"), 2, "-n/--max-tokens: is too many behind a prompt of 27"),
        (("lens", "", "--json"), 2, "prompt: is empty"),
        (("lens", "-f", "none", "--json"), 1, "none: cannot be read"),
        (("lens", ASK, "-m", "none", "--json", "--offline"), 1, "none: "),
    ],
)
def test_a_fault_is_one_line(words, status, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *words)
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert err.startswith(f"qwq: {problem}")
    assert not list(tmp_path.iterdir())


def test_the_longest_text(capsys):
    facts = data(capsys, "residual", "1" * MOST_TOKENS, "--raw")
    assert len(facts["tokens"]) == MOST_TOKENS


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("qwq_ref.host.memory.available_bytes", lambda: 1 << 16)
    status, out, err = run(capsys, "lens", ASK, "--json")
    assert (status, out) == (1, "")
    assert err.startswith("qwq: qwq-nano: needs ")
    assert err.count("\n") == 1


def test_without_matplotlib_the_extra_is_named_and_data_are_printed(tmp_path):
    """A folder of that name, which no import can use, hides the package."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def plot(*words):
        command = [sys.executable, "-m", "qwq_ref", "plot", "residual", "1+2", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    refused = plot("-o", "x.svg")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "qwq: -o/--out: needs matplotlib, which is missing: pip install 'qwq_ref[plot]'\n"
    assert json.loads(plot("--json").stdout)["version"] == 1


def test_a_home_that_cannot_be_written_is_no_concern(tmp_path):
    """matplotlib keeps a cache there, and warns about it."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "qwq_ref", "plot", "residual", "1+2", "-o", str(tmp_path / "x.svg")],
        env=os.environ | {"MPLCONFIGDIR": str(tmp_path / "file" / "below"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_tells_that_nothing_was_drawn(capsys, tmp_path, monkeypatch):
    def stopped(*arguments, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr("qwq_ref.inside.look", stopped)
    status, out, err = run(capsys, "lens", ASK, "-o", tmp_path / "x.svg")
    assert (status, out, err) == (130, "", "qwq: interrupted: nothing was drawn\n")
    assert not list(tmp_path.iterdir())


def test_letters_of_other_fonts_are_announced(capsys, tmp_path):
    status, _, err = run(capsys, "attention", "加", "--raw", "-o", tmp_path / "x.svg")
    assert (status, err) == (0, "qwq: whoever opens the picture needs a font with these characters: 加\n")
    from matplotlib import font_manager

    only = [entry for entry in font_manager.fontManager.ttflist if "DejaVu" in entry.name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(font_manager.fontManager, "ttflist", only)
        status, _, err = run(capsys, "attention", "加", "--raw", "-o", tmp_path / "x.png")
    assert (status, err) == (0, "qwq: no installed font has these characters, so escapes stand for them: 加\n")


def test_a_model_without_a_template_takes_raw_text(capsys, random_folder, tmp_path):
    import shutil

    shutil.copytree(random_folder, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    (tmp_path / "m" / "tokenizer_config.json").unlink(missing_ok=True)
    facts = data(capsys, "lens", "-m", tmp_path / "m", "Hello you")
    assert "".join(token["text"] for token in facts["tokens"]) == "Hello you"
    status, _, err = run(capsys, "lens", "-m", tmp_path / "m", "Hello", "--chat", "--json")
    assert (status, err) == (2, f"qwq: {tmp_path}/m: has no chat template: give one, or a raw prompt\n")


def test_packed_weights_are_refused(capsys, tmp_path):
    assert main(["convert", "-m", "qwq-nano", "-o", str(tmp_path / "packed"), "--weights", "q8"]) == 0
    capsys.readouterr()
    status, out, err = run(capsys, "lens", ASK, "-m", tmp_path / "packed", "--json")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "packed" in err


def answers_of(path, suite, accuracies):
    """A file of answers: budget -> how many of 4 are correct."""
    lines = [{"version": 1, "run": {"suite": suite}}]
    for budget, right in accuracies.items():
        for i in range(4):
            texts = dict.fromkeys(("group", "prompt", "begun", "text", "reasoning", "why"), "")
            counts = dict.fromkeys(("sample", "seed", "prompt_tokens", "tokens"), 0)
            tokens = 99 if budget is None else min(budget, 60)
            line = {"id": f"t{i}", **texts, **counts, "budget": budget, "reasoning_tokens": tokens}
            lines.append(
                {**line, "finish_reason": "stop", "seconds": 0, "judge_seconds": 0, "parts": {}, "correct": i < right}
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_accuracy_against_reasoning(capsys, tmp_path):
    first = answers_of(tmp_path / "first.jsonl", "toy", {None: 4, 64: 3, 0: 1, 256: 3})
    second = answers_of(tmp_path / "second.jsonl", "toy", {16: 2})
    found = data(capsys, "budget", first, second)["runs"]
    assert [run["file"] for run in found] == [str(first), str(second)]
    points = found[0]["points"]
    assert [(point["budget"], point["accuracy"]) for point in points] == [
        (0, 0.25),
        (64, 0.75),
        (256, 0.75),
        (None, 1.0),
    ]
    assert [point["reasoning_tokens"] for point in points] == [0, 60, 60, 99]
    assert all(point["low"] <= point["accuracy"] <= point["high"] and point["n"] == 4 for point in points)
    picture = tmp_path / "x.svg"
    assert run(capsys, "budget", first, second, "-o", picture)[0] == 0
    text = picture.read_text()
    assert ">Accuracy and reasoning: toy</text>" in text
    for label in ("first", "second", "0", "64, 256", "no limit", "16"):
        assert f">{label}</text>" in text
    assert 'id="run-0"' in text
    assert 'id="run-1"' in text


@pytest.mark.parametrize(
    ("content", "status", "problem"),
    [
        (None, 1, "is no file"),
        (b"", 1, "holds no answers yet"),
        (b'{"version": 1, "run": {"suite": "toy"}}\n', 1, "holds no answers yet"),
        (b"{}\n", 1, "line 1: is no beginning of a file of answers"),
    ],
)
def test_files_without_answers(content, status, problem, capsys, tmp_path):
    file = tmp_path / "x.jsonl"
    if content is not None:
        file.write_bytes(content)
    found, out, err = run(capsys, "budget", file, "--json")
    assert (found, out) == (status, "")
    assert err.startswith(f"qwq: {file}: {problem}")
