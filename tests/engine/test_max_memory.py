"""Models that need more than --max-memory: layers of every source are read in each pass, with the same bits."""

import json
import os
import signal

import ml_dtypes
import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine import fit, streaming_fit
from qwq_ref.engine.backends import ALL, Step
from qwq_ref.engine.convert import convert
from qwq_ref.engine.fit import Budget, core_needs
from qwq_ref.engine.plan import EMBEDDING, plan
from qwq_ref.engine.streaming import Layout
from qwq_ref.errors import CheckpointError, MemoryLimitError, UsageError
from qwq_ref.eval.chunks import measure
from qwq_ref.formats import open_source
from qwq_ref.host import memory
from tests.engine.test_quantised import write as write_quantised
from tests.support import quantised_models as made
from tests.support.checkpoints import write_checkpoint
from tests.support.gguf_models import NATIVE, NATIVE_SUPER, mixture, peer_config, write_types
from tests.support.models import config_values, random_weights
from tests.support.small_tokenizer import SENTENCES, SIZE

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
IDS = [3, 41, 4, 70, 5, 95, 2, 33]
LAYERS = 6
CONTEXT = 64
VALUES = config_values(num_hidden_layers=LAYERS, vocab_size=SIZE, max_position_embeddings=256)


@pytest.fixture(autouse=True)
def _without_scratch(monkeypatch):
    """The scratch of packing is larger than these models, so that none of them would be streamed."""
    monkeypatch.setattr(streaming_fit, "packing_bytes", lambda config: 0)
    monkeypatch.setattr(memory, "process_bytes", lambda: 0)


def test_what_the_process_holds_counts(monkeypatch):
    monkeypatch.undo()
    held = memory.process_bytes()
    assert 10 << 20 < held <= memory.peak_bytes()
    assert abs(Budget(maximum=held + (1 << 20)).available - (1 << 20)) < 1 << 23
    assert Budget(maximum=1).available == 0


def test_a_refusal_tells_the_memory_that_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "process_bytes", lambda: 150 << 20)
    path = checkpoint(tmp_path / "m")
    for most in (1 << 20, 151 << 20):
        with pytest.raises(MemoryLimitError) as caught:
            qwq_ref.load(path, context=CONTEXT, max_memory=most)
        assert str(caught.value).endswith(
            " available: the process holds 0.15 GiB of max-memory already; a max-memory of 160 MiB is enough"
        )
    qwq_ref.load(path, context=CONTEXT, max_memory=160 << 20)


def checkpoint(folder, dtype=np.float32, **changes):
    folder.mkdir(exist_ok=True)
    weights = random_weights(Config.from_dict(VALUES | changes), 3)
    return write_checkpoint(folder, VALUES | changes, {name: w.astype(dtype) for name, w in weights.items()})


def gguf_file(folder):
    config = peer_config(num_hidden_layers=LAYERS)
    write_types(folder / "m.gguf", config, mixture([*NATIVE, *NATIVE_SUPER]), seed=1)
    return folder / "m.gguf"


def quantised(kind):
    def write(folder):
        write_quantised(folder, kind, Config.from_dict(made.values_of(num_hidden_layers=LAYERS)))
        return folder

    return write


def packed(write, form):
    def convert_it(folder):
        convert(write(folder / "source" if write is checkpoint else folder), folder / "packed", form)
        return folder / "packed"

    return convert_it


SOURCES = {
    "fp32": (lambda folder: checkpoint(folder / "m"), "fp32"),
    "bf16": (lambda folder: checkpoint(folder / "m", ml_dtypes.bfloat16), "bf16"),
    "fp16 as fp32": (lambda folder: checkpoint(folder / "m", np.float16), "fp32"),
    "tied": (lambda folder: checkpoint(folder / "m", ml_dtypes.bfloat16, tie_word_embeddings=True), "bf16"),
    "a beta": (lambda folder: checkpoint(folder / "m", swiglu_beta=0.7), "fp32"),
    "GGUF": (gguf_file, "file"),
    "GGUF as fp32": (gguf_file, "fp32"),
    "AWQ": (quantised("AWQ, groups of 32"), "file"),
    "GPTQ in an order": (quantised("GPTQ in an order, 4 bits"), "file"),
    "GPTQ in many orders": (quantised("GPTQ in many orders"), "file"),
    "MLX": (quantised("MLX, 4 bits"), "file"),
    "packed q4": (packed(checkpoint, "q4"), "q4"),
    "packed fp32": (packed(checkpoint, "fp32"), "fp32"),
    "packed GGUF": (packed(gguf_file, "file"), "file"),
    "packed GPTQ in an order": (packed(quantised("GPTQ in an order, 4 bits"), "file"), "file"),
}


def too_little(model, budget=None):
    """-> bytes in which two layers of a model can be kept, and two are read"""
    backend = model.backend
    form, planned = backend.weights.form, plan(backend.config, backend.weights.form)
    needs = sum(core_needs(backend.config, form, backend.kv, budget or Budget())(backend.context).values())
    layout = Layout.of(backend.config, form, 0)
    vectors = sum(stored.nbytes for name, stored in planned.items() if stored.format is None and name != EMBEDDING)
    return needs - sum(stored.nbytes for stored in planned.values()) + vectors + layout.nbytes + 2 * max(layout.sizes)


@pytest.mark.parametrize("name", SOURCES)
def test_the_bits_are_the_same(tmp_path, name):
    write, form = SOURCES[name]
    path = write(tmp_path)
    whole = qwq_ref.load(path, weights=form, context=CONTEXT)
    wanted = whole.logits(IDS)
    lines = []
    most = too_little(whole)
    model = qwq_ref.load(
        path, weights=form, context=CONTEXT, max_memory=most, announce=lambda line, size: lines.append((line, size))
    )
    backend = model.backend
    assert backend.streams
    assert not whole.backend.streams
    assert (backend.form, backend.kv) == (form, whole.backend.kv)
    ((line, size),) = lines
    assert "read in each pass" in line
    assert size <= most
    assert np.array_equal(model.logits(IDS), wanted)
    assert np.array_equal(model.logits(IDS[:3]), wanted[:3])
    steps = [Step(IDS[:i], backend.sequence(), ALL) for i in (3, 8, 1)]
    for step, found in zip(steps, backend.run_together(steps), strict=True):
        assert np.array_equal(found, wanted[: len(step.ids)])


@pytest.mark.parametrize("name", ["AWQ", "GPTQ in an order", "GGUF"])
def test_stripes_of_a_file_count(tmp_path, name, monkeypatch):
    """Matrices of AWQ and GPTQ are read in stripes, which are held for a while."""
    write, form = SOURCES[name]
    path = write(tmp_path)
    with open_source(path) as source:
        held = source.kept.held
    assert (held > 0) == (name != "GGUF")
    monkeypatch.setattr(fit, "packing_bytes", lambda config: 1 << 30)
    monkeypatch.setattr(streaming_fit, "packing_bytes", lambda config: 1 << 30)
    found = []
    for told in (held, 0):
        monkeypatch.setattr(type(source.kept), "held", told)
        qwq_ref.load(path, weights=form, context=CONTEXT, announce=lambda line, size: found.append(size))
    assert found[0] - found[1] == held


def test_what_fits_is_kept(tmp_path):
    path = checkpoint(tmp_path / "m")
    whole = qwq_ref.load(path, weights="fp32", context=CONTEXT)
    needed = sum(core_needs(whole.config, "fp32", "fp32")(CONTEXT).values())
    assert not qwq_ref.load(path, weights="fp32", context=CONTEXT, max_memory=needed).backend.streams
    without_embedding = qwq_ref.load(path, weights="fp32", context=CONTEXT, max_memory=needed - 1)
    assert (without_embedding.backend.weights.streamed, without_embedding.backend.streams) == (0, False)
    assert np.array_equal(without_embedding.logits(IDS), whole.logits(IDS))
    smaller = qwq_ref.load(path, context=CONTEXT, max_memory=needed - 1)  # without a wish for a form
    assert (smaller.backend.form, smaller.backend.streams) == ("q8", False)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    path = checkpoint(tmp_path / "m")
    with pytest.raises(UsageError, match="weights: q8 would be rounded anew in each pass: convert the model first"):
        qwq_ref.load(path, weights="q8", context=CONTEXT, max_memory=1000)
    with pytest.raises(MemoryLimitError, match=r"needs .* of memory \(weights .*, but .* are available"):
        qwq_ref.load(path, weights="fp32", context=CONTEXT, max_memory=1000)
    with pytest.raises(MemoryLimitError):
        qwq_ref.load(path, backend="numpy", context=CONTEXT, max_memory=1000)
    for name in ("max_memory", "parallel", "rows"):
        with pytest.raises(UsageError, match=f"{name}: must be at least 1, got 0"):
            qwq_ref.load(path, **{name: 0})


def test_a_file_that_shrinks_is_an_error(tmp_path):
    path = checkpoint(tmp_path / "m")
    whole = qwq_ref.load(path, weights="fp32", context=CONTEXT)
    model = qwq_ref.load(path, weights="fp32", context=CONTEXT, max_memory=too_little(whole))
    file = path / "model.safetensors"
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size // 2)

    def twice():
        """The first layers may have been read before."""
        for _ in range(2):
            model.logits(IDS)

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        twice()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("name", ["fp32", "packed q4", "GGUF"])
def test_a_forked_child_reads_layers_with_threads_of_its_own(tmp_path, name):
    write, form = SOURCES[name]
    path = write(tmp_path)
    whole = qwq_ref.load(path, weights=form, context=CONTEXT)
    model = qwq_ref.load(path, weights=form, context=CONTEXT, max_memory=too_little(whole))
    wanted = model.logits(IDS)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(model.logits(IDS), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(model.logits(IDS), wanted)


@pytest.mark.parametrize("parallel", [1, 3])
def test_perplexity_is_the_same(tmp_path, parallel):
    path = checkpoint(tmp_path / "m")
    text = " ".join(SENTENCES) * 20
    whole = qwq_ref.load(path, weights="fp32", kv="int8", context=32)
    wanted = measure(whole, text, ctx=32, kl_base=tmp_path / "wanted")
    budget = Budget(parallel=parallel, rows=16)
    model = qwq_ref.load(
        path,
        weights="fp32",
        kv="int8",
        context=32,
        max_memory=too_little(whole, budget),
        parallel=parallel,
        rows=16,
    )
    assert model.backend.streams
    assert measure(model, text, ctx=32, kl_base=tmp_path / "found").ppl.value == pytest.approx(
        wanted.ppl.value, rel=1e-12
    )
    found = measure(model, text, kl=tmp_path / "wanted")
    assert found.chunks == wanted.chunks
    assert found.divergence.mean_kld.value < 1e-7
    backend = json.dumps(whole.backend.description).encode(), json.dumps(model.backend.description).encode()
    first, second = ((tmp_path / name).read_bytes() for name in ("wanted", "found"))
    assert first.partition(b"}")[2].lstrip(b" ") == second.partition(b"}")[2].lstrip(b" ")
    assert backend[0] in first
    assert backend[1] in second


def test_prompts_share_passes(tmp_path, capsys):
    path = checkpoint(tmp_path / "m", ml_dtypes.bfloat16)
    whole = qwq_ref.load(path, weights="bf16", context=CONTEXT)
    prompts = ["the cat", "a dog sat on", "the"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    most = too_little(whole, Budget(parallel=3))
    words = ["-m", path, "--weights", "bf16", "-c", CONTEXT, "-n", 5, "--temp", 0, "--raw"]
    command = [*map(str, words), "--prompts", str(tmp_path / "p.jsonl"), "--max-memory", str(most), "-v"]
    assert main(["generate", *command]) == 0
    out, err = capsys.readouterr()
    assert "read in each pass" in err
    assert "tokens of context for each of 3" in err
    for text, line in zip(prompts, map(json.loads, out.splitlines()), strict=True):
        alone = whole.generate(text, raw=True, max_tokens=5, temperature=0)
        assert (line["prompt"], line["model"]) == (text, str(path))
        assert line["thinking"] + line["answer"] == "".join(map(str, alone))


@pytest.mark.parametrize(
    ("arguments", "text", "problem"),
    [
        (["--parallel", "2", "hi"], None, "parallel: needs --prompts"),
        (["--prompts", "FILE", "hi"], "a\n", "has no effect with --prompts"),
        (["--prompts", "FILE"], "\n \n", "prompts: holds none: write one a line"),
        (["--prompts", "FILE.jsonl"], "\"a\"\n{'b'}\n", "line 2: is not JSON"),
        (["--prompts", "FILE.jsonl"], '"a"\n\n[1]\n', "line 3: must be a string, or an object with a prompt"),
        (["--prompts", "FILE.jsonl"], '"a"\n' + "[" * 100_000, "line 2: is not JSON"),
        (["--prompts", "FILE.jsonl"], '"\\ud800"\n', "line 1: character 0 is a lone surrogate, not text"),
        (["--prompts", "FILE", "-n", "2000"], "a\n\nb\n", "line 1: of 18 tokens and 2000 more do not fit"),
        (["--prompts", "FILE", "-n", "999", "-c", "1024"], f"a\n\n{'a ' * 99}\n", "line 3: of "),
        (["--prompts", "absent"], None, "cannot be read"),
    ],
)
def test_prompts_that_are_refused(tmp_path, capsys, arguments, text, problem):
    words = [word.replace("FILE", str(tmp_path / "prompts")) for word in arguments]
    if text is not None:
        (tmp_path / ("prompts.jsonl" if "FILE.jsonl" in arguments else "prompts")).write_text(text)
    assert main(["generate", *words]) != 0
    out, err = capsys.readouterr()
    assert (out, problem in err) == ("", True)
    assert len(err.splitlines()) == 1
