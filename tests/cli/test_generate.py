"""`qwq generate`: streams, options, errors, interruptions."""

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

import qwq_ref
from qwq_ref.cli import main
from qwq_ref.config import Config
from tests.support.checkpoints import write_checkpoint
from tests.support.models import random_weights
from tests.support.scripts import Given, command, model_that_says, report


def qwq(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "qwq_ref", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        **kwargs,
    )


def test_the_answer_is_on_stdout_and_the_reasoning_on_stderr(scripted, capsys):
    folder = scripted("two", "4!")
    assert main(["generate", "-m", str(folder), "what?", "--temp", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == "4!\n"
    assert err.startswith("two\n")
    assert re.search(
        r"prompt: \d+ tokens, [\d.]+ tokens/s; output: \d+ tokens, .* peak memory: \d+ MiB; seed: \d+\n$", err
    )


def test_blank_lines_before_the_answer_are_not_part_of_it(small):
    said = small.encode("so</think>\n\n4\n5", special=True)
    model = model_that_says(small, said, Given(small.encode("<think>\n", special=True)))
    assert command(model)[1] == "4\n5\n"
    assert report(model)[0]["answer"] == "4\n5"


def test_reasoning_after_an_answer_begins_on_a_line_of_its_own(small):
    said = small.encode("one</think>ans<think>two</think>more", special=True)
    model = model_that_says(small, said, Given(small.encode("<think>\n", special=True)))
    status, out, err = command(model)[:3]
    assert (status, out) == (0, "ans\nmore\n")
    assert err.startswith("one\n\n\ntwo\n\n")


def test_raw_text_keeps_its_blank_lines(small):
    model = model_that_says(small, small.encode("\n\n4\n5"), None)
    assert command(model, "--raw")[1] == "\n\n4\n5\n"
    assert report(model, "--raw")[0]["answer"] == "\n\n4\n5"


def test_hide_and_only(scripted, capsys):
    folder = scripted("two", "4!")
    assert main(["generate", "-m", str(folder), "what?", "--think", "hide"]) == 0
    out, err = capsys.readouterr()
    assert out == "4!\n"
    assert "two" not in err
    assert main(["generate", "-m", str(folder), "what?", "--think", "only"]) == 0
    out, err = capsys.readouterr()
    assert out == "two\n"
    assert "two" not in err


def test_json(scripted, capsys):
    folder = scripted("two", "4!")
    assert main(["generate", "-m", str(folder), "what?", "--json", "--seed", "5"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    wanted = {"answer": "4!", "thinking": "two", "finish_reason": "stop", "seed": 5}
    assert {key: report[key] for key in wanted} == wanted
    assert report["output_tokens"] >= 4
    assert report["peak_memory_bytes"] > 1 << 20
    assert min(report["prompt_tok_s"], report["output_tok_s"]) > 0


def test_thinking_that_eats_all_tokens_says_so(scripted, capsys):
    folder = scripted("two", "4!")
    assert main(["generate", "-m", str(folder), "what?", "-n", "1"]) == 0
    assert "qwq: the reasoning used up max-tokens (1 tokens)\n" in capsys.readouterr().err
    thinking = len(qwq_ref.text.load_tokenizer(folder).encode("two"))
    assert main(["generate", "-m", str(folder), "what?", "-n", str(thinking + 2)]) == 0
    assert "qwq: the answer was cut off by max-tokens" in capsys.readouterr().err


def test_a_thinking_budget(scripted, capsys):
    folder = scripted("two", "4!")
    assert main(["generate", "-m", str(folder), "what?", "--think-budget", "1", "-n", "200", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["thinking"].endswith("here is the answer.\n")
    first = qwq_ref.text.load_tokenizer(folder)
    assert report["thinking"].startswith(first.decode(first.encode("two")[:1]))
    assert main(["generate", "-m", str(folder), "what?", "--think-budget", "0", "-n", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thinking"] == ""


@pytest.mark.parametrize("how", ["argument", "-p", "file", "stdin"])
def test_where_a_prompt_comes_from(scripted, tmp_path, how):
    folder = scripted("two", "4!")
    file = tmp_path / "prompt.txt"
    file.write_text("what?")
    given = {"argument": ["what?"], "-p": ["-p", "what?"], "file": ["-f", file], "stdin": []}[how]
    done = qwq("generate", "-m", folder, "--json", *given, input="what?\n" if how == "stdin" else "")
    wanted = len(qwq_ref.load(folder).prompt_ids("what?"))
    assert json.loads(done.stdout)["prompt_tokens"] == wanted


def test_reasoning_is_dimmed_on_a_terminal(scripted):
    folder = scripted("two", "4!")
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "qwq_ref", "generate", "-m", str(folder), "what?"]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=environment, timeout=120)
    os.close(terminal)
    seen = b""
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(controller)
    assert done.stdout == "4!\n"
    assert b"\x1b[2mt" in seen
    assert b"\x1b[0m" in seen


def test_ctrl_c_keeps_the_partial_answer(scripted):
    folder = scripted("two", "4!", ends=False)  # goes on until the context is full
    command = [sys.executable, "-m", "qwq_ref", "generate", "-m", str(folder), "what?"]
    # A test run in the background of a shell has SIGINT ignored, and its children inherit that.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed)
    first = process.stdout.read(2)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).startswith("4!")
    assert rest.endswith("\n")
    assert "Traceback" not in err
    assert "output:" in err


def test_a_broken_pipe_is_silent(scripted):
    folder = scripted("two", "4!", ends=False)
    command = [sys.executable, "-m", "qwq_ref", "generate", "-m", str(folder), "what?", "--think", "hide"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert err == b""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing"], 2, "is not a command"),
        (["generate", "-m", "{folder}"], 2, "prompt: is empty"),
        (["generate", "-m", "{folder}", "-p", "x", "y"], 2, "given twice"),
        (["generate", "-m", "{folder}", "x", "--top-p", "2"], 2, "top-p"),
        (["generate", "-m", "{folder}", "x", "--samplers", "heat"], 2, "--samplers"),
        (["generate", "-m", "{folder}", "x", "-t", "0"], 2, "threads"),
        (["generate", "-m", "{folder}", "x", "-c", "9"], 2, "context of 9"),
        (["generate", "-m", "{folder}", "x", "-c", "99999"], 2, "ctx-size"),
        (["generate", "-m", "{folder}", "x", "-n", "0"], 2, "max-tokens"),
        (["generate", "-m", "{folder}", "-f", "/nowhere/at/all"], 1, "No such file"),
        (["generate", "-m", "/nowhere/at/all", "x"], 1, "not a folder"),
        (["generate", "-m", "owner/name", "x", "--offline"], 1, "offline"),
        (["generate", "-m", "qwq-32b", "x"], 1, "model.safetensors"),
        (["generate", "-m", "{folder}", "x", "--chat-template-file", "/nowhere/at/all"], 1, "cannot be opened"),
        (["generate", "-m", "{folder}", "x", "--rope-scaling", "yarn", "--rope-scale", "0.5"], 2, "--rope-scale"),
        (["info", "/nowhere/at/all"], 1, "not a folder"),
        (["info", "qwq-32b", "--check"], 2, "no weights"),
        (["info", "qwq-32b", "-c", "0"], 2, "ctx-size"),
    ],
)
def test_errors_are_one_line(scripted, arguments, status, words):
    folder = str(scripted("two", "4!"))
    done = qwq(*(argument.format(folder=folder) for argument in arguments), input="")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("qwq")
    assert words in done.stderr


def test_verbose_errors_have_a_traceback():
    done = qwq("info", "/nowhere/at/all", "-v")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_rope_options_reach_the_model(scripted, capsys):
    folder = str(scripted("two", "4!"))
    arguments = ["--rope-scaling", "yarn", "--yarn-orig-ctx", "2048", "-v"]
    assert main(["generate", "-m", folder, "what?", *arguments]) == 0
    assert "context: 8192 tokens" in capsys.readouterr().err


def test_a_base_model_without_a_template_takes_a_raw_prompt(random_folder, tmp_path, capsys):
    values = json.loads((random_folder / "config.json").read_text())
    folder = write_checkpoint(tmp_path, values, random_weights(Config.from_dict(values), 0))
    (folder / "chat_template.jinja").unlink()
    assert main(["generate", "-m", str(folder), "what?", "-n", "2"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert main(["generate", "-m", str(folder), "what?", "-n", "2", "--raw", "--json"]) == 0
    prompt = qwq_ref.text.load_tokenizer(folder).encode("what?")
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(prompt)


def test_threads_are_set_before_numpy_is_imported(scripted):
    folder = str(scripted("two", "4!"))
    script = (
        "import sys, os; from qwq_ref.cli import main; assert 'numpy' not in sys.modules;"
        f"main(['generate', '-m', {folder!r}, 'what?', '-t', '1']); assert os.environ['OMP_NUM_THREADS'] == '1'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
