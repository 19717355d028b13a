"""`qwq generate` and the engine under it: real checkpoints on disk, one random, one that says what it is told."""

import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine.decode import plain as loop
from qwq_ref.engine.fit import core_needs
from qwq_ref.errors import MemoryLimitError, UsageError
from qwq_ref.formats import Checkpoint, safetensors
from qwq_ref.formats import checkpoint as reader
from qwq_ref.host import memory
from qwq_ref.spec import Sampling, forward
from tests.support import hf
from tests.support.models import config_values, random_weights
from tests.support.small_tokenizer import SIZE, TEMPLATE, VALUES

FORMS = [("fp32", "fp32"), ("q8", "int8"), ("q4", "int8")]
PADDED = SIZE + 11  # rows of the embedding that no text has


def write_checkpoint(folder, values, weights):
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(json.dumps(VALUES))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    defaults = {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    values = config_values(vocab_size=PADDED, eos_token_id=VALUES["added_tokens"][2]["id"])
    weights = random_weights(Config.from_dict(values), 7, harsh=True)
    return write_checkpoint(tmp_path_factory.mktemp("random"), values, weights)


def weights_of(folder):
    with Checkpoint.open(folder) as checkpoint:
        return dict(checkpoint)


@pytest.fixture(scope="module", params=["core", "numpy"])
def random_model(random_folder, request):
    if request.param == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    return qwq_ref.load(random_folder, backend=request.param)


def scripted_weights(values, successor):
    """A model of which each token names the next: attention and MLP add nothing, and the head is a table."""
    config = Config.from_dict(values)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.tensors().items()}
    for name, value in weights.items():
        if name.endswith("norm.weight"):
            value[:] = 1
    weights["model.embed_tokens.weight"][:] = np.eye(config.V, config.D)
    for token, following in successor.items():
        weights["lm_head.weight"][following, token] = 1
    return weights


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """-> a function from (thinking, answer) texts to the folder of a model that says them, whatever the prompt."""
    folders = {}

    def make(thinking, answer, ends=True):
        if (thinking, answer, ends) not in folders:
            folder = tmp_path_factory.mktemp("scripted")
            values = config_values(vocab_size=PADDED, hidden_size=PADDED, eos_token_id=id_of("<|im_end|>"))
            tokenizer = qwq_ref.text.load_tokenizer(write_checkpoint(folder, values, scripted_weights(values, {})))
            said = [*tokenizer.encode(thinking), tokenizer.think_end, *tokenizer.encode(answer)]
            said.append(id_of("<|im_end|>") if ends else said[-2])
            last = tokenizer.encode("\n")[-1]  # the template's prompt ends with <think> and a line end
            script = [last, *said]
            assert ends is False or len(set(script)) == len(script), "a token would have two successors"
            successor = dict(itertools.pairwise(script))
            save_file(scripted_weights(values, successor), folder / "model.safetensors")
            folders[thinking, answer, ends] = folder
        return folders[thinking, answer, ends]

    return make


def id_of(token):
    return next(entry["id"] for entry in VALUES["added_tokens"] if entry["content"] == token)


# --- the model and the loop --------------------------------------------------------------------------------------


def test_greedy_text_is_hf(random_folder, random_model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(random_folder, dtype=torch.float32, attn_implementation="eager")
    ids = random_model.prompt_ids("count to three")
    padding = list(range(SIZE, PADDED))
    wanted = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=60, suppress_tokens=padding)
    wanted = wanted[0, len(ids) :].tolist()
    generation = random_model.generate("count to three", temperature=0, max_tokens=60)
    list(generation)
    assert generation.run.output == wanted
    assert len(set(wanted)) >= 10


def test_logits_are_hf(random_folder, random_model):
    values = json.loads((random_folder / "config.json").read_text())
    weights = weights_of(random_folder)
    theirs = hf.build(random_model.config, values, weights)
    ids = [5, 9, 1, 200]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    assert random_model.logits(ids).dtype == np.float32
    assert hf.nmse(random_model.logits(ids), wanted) <= 1e-10


def test_the_seed_decides(random_model):
    def say(seed):
        generation = random_model.generate("hello", max_tokens=25, seed=seed, temperature=1.5)
        text = "".join(str(piece) for piece in generation)
        return text, generation.run.output, generation.run.seed

    assert say(1) == say(1)
    assert say(1)[1] != say(2)[1]
    assert say(None)[2] != say(None)[2]


def test_padding_rows_are_never_drawn(random_model):
    class Loves:
        """Logits that want nothing but padding, and after it the last real token."""

        chunk = 10

        def step(self, ids, cache, progress=None):
            logits = np.arange(PADDED, dtype=np.float32)
            return logits, cache

    run = loop.Run([1, 2], seed=0)
    size = random_model.tokenizer.size
    drawn = list(loop.generate(Loves(), run, Sampling(), end_ids=(), vocabulary=size, context=50))
    assert max(drawn) == size - 1
    assert len(drawn) == 48
    assert run.finish_reason == "context"


def test_a_long_prompt_is_read_in_chunks_to_the_same_logits(random_folder, random_model):
    chunk = random_model.backend.chunk
    ids = list(np.random.default_rng(0).integers(0, SIZE, chunk * 2 + 3))
    seen = []

    class Spy(type(random_model.backend)):
        def __init__(self):
            self.__dict__.update(random_model.backend.__dict__)

        def step(self, chunk, cache, progress=None):
            logits, cache = super().step(chunk, cache, progress)
            seen.append((len(chunk), logits))
            return logits, cache

    counts = []
    run = loop.Run(ids, seed=0)
    arguments = {"end_ids": (), "vocabulary": SIZE, "context": 4096, "max_tokens": 2, "progress": counts.append}
    assert len(list(loop.generate(Spy(), run, Sampling(0), **arguments))) == 2
    assert [length for length, _ in seen] == [chunk, chunk, 3, 1]
    assert sum(counts) == pytest.approx(len(ids))
    whole, _ = forward(random_model.config, weights_of(random_folder), ids)
    assert hf.nmse(seen[2][1], whole[-1]) <= 1e-10


def test_a_position_draws_the_same_however_it_is_reached(random_model):
    """Cut after some tokens and go on from there with the same seed: the rest is what it would have been."""
    ids = random_model.prompt_ids("hello")

    def go(prompt, count):
        run = loop.Run(prompt, seed=3)
        how = Sampling(temperature=1.2)
        return list(
            loop.generate(random_model.backend, run, how, end_ids=(), vocabulary=SIZE, context=4096, max_tokens=count)
        )

    whole = go(ids, 12)
    assert go(ids + whole[:5], 7) == whole[5:]


def test_forced_tokens_respect_the_limits(random_model):
    run = loop.Run([1], seed=0)
    arguments = {"end_ids": (), "vocabulary": SIZE, "context": 100, "max_tokens": 5}
    forced = loop.generate(random_model.backend, run, Sampling(), intervene=lambda output: [7] * 50, **arguments)
    assert list(forced)[1:] == [7] * 4
    assert run.finish_reason == "length"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"think_budget": -1}, "think_budget"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 5000}, "prompt"),
        ({"prompt": "a b c d " * 3000}, "prompt"),
        ({"prompt": "", "raw": True}, "prompt"),
        ({"raw": True, "system": "x"}, "raw"),
    ],
)
def test_what_is_refused_before_anything_is_computed(random_model, monkeypatch, arguments, field):
    monkeypatch.setattr(random_model, "backend", None)
    with pytest.raises(UsageError) as caught:
        random_model.generate(**{"prompt": "hello"} | arguments)
    assert caught.value.field == field


def test_a_model_that_does_not_fit_is_refused_before_loading(random_folder, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 150_000)
    monkeypatch.setattr("qwq_ref.formats.Checkpoint.__getitem__", None)
    with pytest.raises(
        MemoryLimitError, match=r"needs .* \(weights .* \+ KV cache .* \+ scratch .*\), but .* available"
    ):
        qwq_ref.load(random_folder)


@pytest.mark.parametrize(("backend", "available"), [("core", 4 << 20), ("numpy", 12 << 20)])
def test_the_context_shrinks_to_what_fits_unless_it_was_asked_for(random_folder, monkeypatch, backend, available):
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    how = {"backend": backend, "weights": "fp32"}
    assert qwq_ref.load(random_folder, **how).context == 4096
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    smaller = qwq_ref.load(random_folder, **how).context
    assert 256 <= smaller < 4096
    with pytest.raises(MemoryLimitError):
        qwq_ref.load(random_folder, context=4096, **how)
    with pytest.raises(UsageError, match="ctx-size"):
        qwq_ref.load(random_folder, context=4097, **how)


def test_memory_is_announced_before_anything_is_read(random_folder, monkeypatch, capfd):
    """With what will be where; on the command line for a large model, or when asked."""
    lines = []
    monkeypatch.setattr(Checkpoint, "rows", lambda *a: pytest.fail("it was read"))
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda *a: pytest.fail("it was read"))

    def announce(line, size):
        lines.append((line, size))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qwq_ref.load(random_folder, context=300, announce=announce)
    ((line, size),) = lines
    assert re.fullmatch(
        r"(numpy, )?weights fp32, KV cache fp32, 300 tokens of context: weights .* \+ KV cache .* \+ scratch .* = "
        r".* available",
        line,
    )
    assert size > 0
    monkeypatch.undo()
    for arguments, announced in (((), False), (("-v",), True)):
        assert main(["generate", "hello", "-n", "1", "-m", str(random_folder), *arguments]) == 0
        assert ("tokens of context: weights" in capfd.readouterr().err) == announced
    monkeypatch.setattr("qwq_ref.cli.generate._LARGE", 1)
    assert main(["generate", "hello", "-n", "1", "-m", str(random_folder)]) == 0
    assert "tokens of context: weights" in capfd.readouterr().err


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_of_a_large_checkpoint_no_second_copy_stays_in_memory(random_folder, monkeypatch):
    """What was read is given up, slice by slice: all bytes of all tensors."""
    told = []
    monkeypatch.setattr(safetensors, "forget_range", lambda _, begin, count: told.append((begin, begin + count)))
    qwq_ref.load(random_folder)
    assert not told, "a small one may stay"
    monkeypatch.setattr(reader, "DROP_FROM", 1)
    qwq_ref.load(random_folder)
    with Checkpoint.open(random_folder) as checkpoint:
        wanted = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    told.sort()
    assert sum(end - begin for begin, end in told) == wanted
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(told))


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_less_memory_takes_smaller_weights(random_folder, monkeypatch):
    """The most exact that fits; what was asked for, or nothing."""
    needs = {form: sum(core_needs(qwq_ref.load(random_folder).config, form, kv)(256).values()) for form, kv in FORMS}
    assert needs["fp32"] > needs["q8"] > needs["q4"]
    for form, _ in FORMS:
        monkeypatch.setattr(memory, "available_bytes", lambda form=form: needs[form])
        assert qwq_ref.load(random_folder).backend.form == form
    with pytest.raises(MemoryLimitError, match="weights"):
        qwq_ref.load(random_folder, weights="fp32")
    monkeypatch.setattr(memory, "available_bytes", lambda: needs["q4"] - 1)
    with pytest.raises(MemoryLimitError):
        qwq_ref.load(random_folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"backend": "gpu"}, "backend: must be one of core, numpy, got gpu"),
        ({"weights": "q2"}, "weights: must be one of fp32, bf16, q8, q4, got q2"),
        ({"kv": "fp8"}, "kv: must be one of fp32, int8"),
        ({"threads": 0}, "threads: must be at least 1"),
        ({"backend": "numpy", "weights": "q4"}, "backend: numpy has fp32 weights"),
    ],
)
def test_what_the_engine_does_not_know(random_folder, how, message):
    with pytest.raises(UsageError, match=message):
        qwq_ref.load(random_folder, **how)


def test_available_memory_is_that_of_this_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available_bytes() <= total
    assert 0 < memory.peak_bytes() <= total


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_limit_what_is_available(tmp_path, version):
    """The limit of any group around this process counts, less what the group uses."""
    names = {1: ("memory.usage_in_bytes", "memory.limit_in_bytes"), 2: ("memory.current", "memory.max")}[version]
    top = tmp_path / "sys" / "fs" / "cgroup" / {1: "memory", 2: ""}[version]
    inner = top / "outer" / "inner"
    inner.mkdir(parents=True)
    for group, used, limit in (
        (top / "outer", 30_000, "100000"),
        (inner, 10, str(2**60) if version == 1 else "max"),
    ):
        (group / names[0]).write_text(str(used))
        (group / names[1]).write_text(limit)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    line = {1: "7:cpuset:/\n4:memory,hugetlb:/outer/inner\n", 2: "0::/outer/inner\n"}[version]
    (tmp_path / "proc" / "self" / "cgroup").write_text(line)
    assert memory.available_bytes(tmp_path) == 70_000


# --- the command line --------------------------------------------------------------------------------------------


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


def test_blank_lines_before_the_answer_are_not_part_of_it(scripted, capsys, monkeypatch):
    from qwq_ref.engine.model import Model, Piece

    true = Model.generate

    def generate(self, *args, **kwargs):
        generation = true(self, *args, **kwargs)
        generation._pieces = iter(
            [Piece("so", "thinking"), Piece("\n", "answer"), Piece("\n4", "answer"), Piece("\n5", "answer")]
        )
        return generation

    monkeypatch.setattr(Model, "generate", generate)
    assert main(["generate", "-m", str(scripted("two", "4!")), "what?"]) == 0
    assert capsys.readouterr().out == "4\n5\n"


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
        ([], 2, "COMMAND"),
        (["nothing"], 2, "invalid choice"),
        (["generate", "-m", "{folder}"], 2, "prompt: is empty"),
        (["generate", "-m", "{folder}", "-p", "x", "y"], 2, "given twice"),
        (["generate", "-m", "{folder}", "x", "--top-p", "2"], 2, "top_p"),
        (["generate", "-m", "{folder}", "x", "--samplers", "heat"], 2, "steps"),
        (["generate", "-m", "{folder}", "x", "-t", "0"], 2, "threads"),
        (["generate", "-m", "{folder}", "x", "-c", "9"], 2, "context of 9"),
        (["generate", "-m", "{folder}", "x", "-c", "99999"], 2, "ctx-size"),
        (["generate", "-m", "{folder}", "x", "-n", "0"], 2, "max_tokens"),
        (["generate", "-m", "{folder}", "-f", "/nowhere/at/all"], 2, "No such file"),
        (["generate", "-m", "/nowhere/at/all", "x"], 1, "not a folder"),
        (["generate", "-m", "owner/name", "x", "--offline"], 1, "offline"),
        (["generate", "-m", "qwq-32b", "x"], 1, "model.safetensors"),
        (["generate", "-m", "{folder}", "x", "--chat-template-file", "/nowhere/at/all"], 1, "cannot be opened"),
        (["generate", "-m", "{folder}", "x", "--rope-scaling", "yarn", "--rope-scale", "0.5"], 1, "factor"),
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


# --- qwq info ----------------------------------------------------------------------------------------------------


def test_info_of_the_real_model(capsys):
    assert main(["info", "qwq-32b"]) == 0
    out = capsys.readouterr().out
    assert "32,763,876,352 parameters in 771 tensors" in out
    assert "512.0 KiB   256.0 KiB   132.0 KiB" in out
    assert main(["info", "qwq-32b", "--json", "-c", "32768"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["weight_bytes"]["bf16"] == 65_527_752_704
    assert report["contexts"][0]["kv_bytes"]["bf16"] == 8 << 30
    assert report["contexts"][0]["memory_bytes"]["bf16+bf16"] == 65_527_752_704 + (8 << 30)


def test_info_of_a_checkpoint(random_folder, capsys):
    assert main(["info", str(random_folder), "--check"]) == 0
    assert "of F32; every weight is finite" in capsys.readouterr().out
    assert main(["info", str(random_folder / "config.json")]) == 0
    assert "stored" not in capsys.readouterr().out


def test_info_finds_a_nan(random_folder, tmp_path, capsys):
    from safetensors.numpy import load_file

    weights = load_file(random_folder / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    values = json.loads((random_folder / "config.json").read_text())
    folder = write_checkpoint(tmp_path, values, weights)
    assert main(["info", str(folder)]) == 0
    capsys.readouterr()
    assert main(["info", str(folder), "--check"]) == 1
    assert "model.norm.weight: holds NaN at [3]" in capsys.readouterr().err
