"""NaN and infinity: in each tensor of a checkpoint, in a packed file, and at run time. No token comes of them."""

import dataclasses
import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest

import qwq_ref
from qwq_ref import cli, core
from qwq_ref.config import Config
from qwq_ref.engine.convert import convert
from qwq_ref.engine.packing import pack_weights
from qwq_ref.errors import CheckpointError, NonFiniteError
from qwq_ref.formats import packed
from qwq_ref.formats.names import packed_name
from qwq_ref.forms import FORMS
from qwq_ref.numerics import engine
from qwq_ref.spec import Sampling
from qwq_ref.train.rollout import answers_each
from tests.support.checkpoints import write_checkpoint
from tests.support.models import config_values, random_weights
from tests.support.refusals import refused
from tests.support.small_tokenizer import SIZE

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
CONFIG = config_values(vocab_size=SIZE, num_hidden_layers=2, intermediate_size=70, eos_token_id=0)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def model_folder(folder, name=None, at=None, bad=np.nan, dtype="BF16", **changes):
    """A checkpoint with random weights; one of them is not finite."""
    folder.mkdir()
    values = CONFIG | changes
    weights = {n: w.astype(DTYPES[dtype]) for n, w in random_weights(Config.from_dict(values), 1).items()}
    if name is not None:
        weights[name][at] = bad
    return write_checkpoint(folder, values, weights)


def refuses(call, file, field, words):
    refused(CheckpointError, 300, call, file, field, words)


# --- loading and converting -----------------------------------------------------------------------------------------


@needs_core
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("bad", "word", "last"), [(np.nan, "NaN", True), (-np.inf, "infinity", False)])
def test_every_tensor_is_looked_at_while_it_is_packed(form, bad, word, last):
    """`last`: in its last number, or else in its first."""
    config = Config.from_dict(CONFIG | {"num_hidden_layers": 1})
    good = {n: w.astype(ml_dtypes.bfloat16) for n, w in random_weights(config, 1).items()}
    for name in config.tensors():
        weights = dict(good)
        weights[name] = good[name].copy()
        weights[name].flat[-1 if last else 0] = bad
        place = [n - 1 if last else 0 for n in weights[name].shape]
        with pytest.raises(CheckpointError) as caught:
            pack_weights(config, weights, form, 2)
        assert (caught.value.field, caught.value.problem) == (name, f"holds {word} at {place}")


@needs_core
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("tied", [False, True])
def test_loading_and_converting_name_file_tensor_and_place(tmp_path, form, dtype, tied):
    name = "model.embed_tokens.weight" if tied else "model.layers.1.mlp.up_proj.weight"
    folder = model_folder(tmp_path / "bad", name, (40, 3), np.nan, dtype, tie_word_embeddings=tied)
    if form == "bf16" and dtype != "BF16":
        return
    file = folder / "model.safetensors"
    refuses(lambda: qwq_ref.load(folder, weights=form), file, name, "holds NaN at [40, 3]")
    before = sorted(tmp_path.rglob("*"))
    refuses(lambda: convert(folder, tmp_path / "new" / "deep", form), file, name, "holds NaN at [40, 3]")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_numpy_backend_looks_too(tmp_path):
    for name, at in (("model.norm.weight", 5), ("model.layers.0.self_attn.k_proj.bias", 1), ("lm_head.weight", (2, 3))):
        folder = model_folder(tmp_path / name, name, at)
        place = list(np.atleast_1d(at))
        words = f"holds NaN at {[int(i) for i in place]}"
        refuses(lambda f=folder: qwq_ref.load(f, backend="numpy"), folder / "model.safetensors", name, words)


@needs_core
def test_a_failed_conversion_keeps_what_was_there(tmp_path, monkeypatch):
    good, made = model_folder(tmp_path / "good"), tmp_path / "made"
    convert(good, made, "q4")
    before = {file: file.read_bytes() for file in made.iterdir()}
    bad = model_folder(tmp_path / "bad", "lm_head.weight", (0, 0))
    with pytest.raises(CheckpointError, match="holds NaN"):
        convert(bad, made, "q8")
    assert {file: file.read_bytes() for file in made.iterdir()} == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds NaN"):
        convert(bad, tmp_path / "empty", "q8")
    assert list((tmp_path / "empty").iterdir()) == []


@needs_core
@pytest.mark.parametrize(
    ("form", "dtype", "value", "refusal"),
    [
        ("q4", "F32", 65504.0 * 63, None),
        ("q4", "F32", -65504.0 * 63, None),
        ("q4", "F32", 4_126_753.0, "4.12675e+06"),
        ("q8", "F32", 65504.0 * 127, None),
        ("q8", "BF16", 1e7, "1.0027e+07"),
        ("q8", "BF16", -(2.0**100), "-1.26765e+30"),
        ("bf16", "BF16", 3.38e38, None),
        ("fp32", "F32", 3.4e38, None),
        ("fp32", "F16", 65504.0, None),
    ],
)
def test_a_weight_beyond_the_range_of_its_form_is_refused(tmp_path, form, dtype, value, refusal):
    name = "model.layers.0.self_attn.o_proj.weight"
    folder = model_folder(tmp_path / "x", name, (3, 4), value, dtype)
    if refusal is None:
        qwq_ref.load(folder, weights=form)
        return
    words = f"holds {refusal} at [3, 4], beyond the range of this weight form"
    refuses(lambda: qwq_ref.load(folder, weights=form), folder / "model.safetensors", name, words)


@needs_core
def test_an_embedding_that_bf16_would_make_infinite_is_refused(tmp_path):
    name = "model.embed_tokens.weight"
    folder = model_folder(tmp_path / "x", name, (3, 4), 3.4e38, "F32")
    qwq_ref.load(folder, weights="fp32")
    words = "holds 3.4e+38 at [3, 4], beyond the range of this weight form"
    refuses(lambda: qwq_ref.load(folder, weights="q8"), folder / "model.safetensors", name, words)


@needs_core
def test_arrays_of_other_types_are_rounded_or_refused():
    config, name = Config.from_dict(CONFIG), "model.layers.1.self_attn.o_proj.weight"
    weights = random_weights(config, 1)
    wanted = pack_weights(config, weights, "q8", 1)
    for dtype in (np.float64, np.longdouble, ">f4"):
        made = pack_weights(config, {key: w.astype(dtype) for key, w in weights.items()}, "q8", 1)
        assert np.array_equal(made.layers[1].o.packed, wanted.layers[1].o.packed)
        assert np.array_equal(made.norm, wanted.norm)
    wide = weights | {name: weights[name].astype(np.float64)}
    wide[name][3, 4] = -1e300
    with pytest.raises(CheckpointError, match=r"o_proj\.weight: holds -1e\+300 at \[3, 4\], beyond the range of this"):
        pack_weights(config, wide, "fp32", 1)
    for dtype in (np.uint16, np.int8, bool, complex):
        with pytest.raises(CheckpointError, match=rf"o_proj\.weight: must be floats, got {np.dtype(dtype).name}"):
            pack_weights(config, weights | {name: weights[name].astype(dtype)}, "q8", 1)


@needs_core
def test_a_swiglu_beta_that_overflows_is_refused():
    config = dataclasses.replace(Config.from_dict(CONFIG), swiglu_beta=1e-38)
    weights = random_weights(config, 1)
    weights["model.layers.1.mlp.up_proj.weight"][3] = 40
    with pytest.raises(CheckpointError, match=r"up_proj.weight: overflow when the swiglu_beta of 1e-38 is folded"):
        pack_weights(config, weights, "fp32", 1)


# --- packed files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory):
    """All forms of a random model."""
    root = tmp_path_factory.mktemp("packed")
    for form in FORMS:
        convert(model_folder(root / form), root / "all", form)
    return root / "all"


def poked(folder, copy, form, name, begin, data):
    """A copy of a packed folder with the bytes of a tensor changed from `begin` on."""
    shutil.copytree(folder, copy)
    path = copy / packed_name(form)
    with packed.PackedFile(path) as file:
        at = file._file.tensors[name].begin + begin
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    return copy


@needs_core
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.qkv_proj.bias"]
)
def test_norms_and_biases_of_a_packed_file_are_looked_at(packed_folder, tmp_path, form, name):
    for value, word in ((np.nan, "NaN"), (-np.inf, "infinity")):
        folder = poked(packed_folder, tmp_path / word, form, name, 8, np.float32(value).tobytes())
        file = folder / packed_name(form)
        refuses(lambda f=folder: qwq_ref.load(f, weights=form), file, name, f"holds {word} at [2]")


SCALES = {"q8": 64 * 32, "q4": 32 * 32}  # where the scales of the first block begin
OUTPUT = r"the output of layer 1, at position \d+, is the first that is not finite"


@needs_core
@pytest.mark.parametrize("form", SCALES)
@pytest.mark.parametrize(("bits", "word"), [(0xFE00, "NaN"), (0x7C00, "infinity"), (0xFC00, "infinity")])
def test_a_scale_that_is_not_finite_stops_the_first_step(packed_folder, tmp_path, form, bits, word):
    head = f"the logits hold {word}, and all layers are finite: the last norm or the output head is at fault"
    for weight, words in {
        "model.layers.1.self_attn.qkv_proj": "layer 1: queries, keys or values are not finite, or beyond 2^56",
        "model.layers.1.self_attn.o_proj": OUTPUT,
        "model.layers.1.mlp.gate_up_proj": OUTPUT,
        "model.layers.1.mlp.down_proj": OUTPUT,
        "lm_head": head,
    }.items():
        begin = SCALES["q8" if weight == "lm_head" else form]
        folder = poked(packed_folder, tmp_path / weight, form, f"{weight}.weight", begin, np.uint16(bits).tobytes())
        model = qwq_ref.load(folder, weights=form)
        for sampling in ({"temperature": 0}, {"temperature": 0.6, "seed": 1}):
            with pytest.raises(NonFiniteError) as caught:
                list(model.generate("What is 1+1?", **sampling))
            assert (caught.value.file, caught.value.field) == (str(folder), "prompt")
            assert re.fullmatch(words.replace("^", r"\^"), caught.value.problem)


@needs_core
@pytest.mark.parametrize("kv", ["int8", "fp32"])
@pytest.mark.parametrize("isa", core.isas() if core.available() else [])
@pytest.mark.parametrize(("row", "bad"), [(0, np.nan), (90, np.nan), (90, -np.inf), (-1, np.nan), (-1, 1e17)])
def test_attention_hides_no_query_key_or_value(random_folder, kv, isa, row, bad):
    """int8 has no NaN, and vector instructions leave it out of a maximum."""
    model = qwq_ref.load(random_folder, weights="fp32", kv=kv, isa=isa)
    model.backend.weights.layers[1].qkv_bias[row] = bad
    with pytest.raises(NonFiniteError, match=r": prompt: layer 1: queries, keys or values are not finite, or beyond 2"):
        list(model.generate("hello", temperature=0))
    with pytest.raises(NonFiniteError, match=rf"^{re.escape(str(random_folder))}: positions 0 to 2: layer 1: queries"):
        model.logits([1, 2, 3])


# One weight, which is finite and in the range of its form, and words for where the stream becomes too large.
LARGE = {
    "model.embed_tokens.weight": (1e25, r"the embedding of token \d+, at position 0, reaches \S+: float32 cannot hold"),
    "model.layers.0.mlp.down_proj.weight": (
        1e30,
        r"the output of layer 0, at position \d+, reaches .*: float32 cannot hold",
    ),
    "model.layers.0.self_attn.o_proj.weight": (
        1e30,
        r"layer 0, at position \d+, (is the first that is not|reaches .*: flo)",
    ),
    "model.layers.0.mlp.gate_proj.weight": (
        1e23,
        r"the output of layer 0, at position \d+, reaches .*: float32 cannot hold",
    ),
    "model.layers.1.mlp.down_proj.weight": (
        1e30,
        r"the output of layer 1, at position \d+, reaches .*: float32 cannot hold",
    ),
    "model.layers.1.self_attn.v_proj.bias": (
        1e30,
        r"layer 1(: queries|, at position \d+, reaches .*: float32 cannot hold)",
    ),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("how", ["scalar", "avx2", "avx2-vnni", "avx512", "q4", "numpy"])
def test_a_stream_too_large_for_a_norm_gives_no_answer(tmp_path, capsys, name, how):
    """RMSNorm divides it by infinity: the logits of the spec, and of Hugging Face in float32, are all 0."""
    if how == "q4" and "weight" in name and "embed" not in name:
        return  # refused while it is packed
    if how != "numpy" and not (core.available() and how in (*core.isas(), "q4")):
        pytest.skip("the core is not built, or this processor has no such instructions")
    value, words = LARGE[name]
    folder = model_folder(tmp_path / "x", name, slice(None) if name.endswith("bias") else (..., 5), value)
    options = {"weights": "q4"} if how == "q4" else {"backend": "numpy"} if how == "numpy" else {"isa": how}
    model = qwq_ref.load(folder, **options)
    for sampling in ({"temperature": 0}, {"temperature": 0.6, "seed": 1}):
        with pytest.raises(NonFiniteError, match=rf": prompt: .*{words}"):
            list(model.generate("What is 1+1?", **sampling))
    for step, call in {
        "positions 0 to 2": lambda: model.logits([1, 2, 3]),
        "positions 0 to 3": lambda: model.session().extend([1, 2, 3, 4]),
    }.items():
        with pytest.raises(NonFiniteError, match=rf"^{re.escape(str(folder))}: {step}: .*{words}"):
            call()
    if how in ("q4", "numpy"):
        chosen = ["--weights", "q4"] if how == "q4" else ["--backend", "numpy"]
        assert cli.main(["eval", "-m", str(folder), "--categories", "add3", "-n", "1", *chosen]) == 1
        assert capsys.readouterr().err.startswith(f"qwq: {folder}: add3, prompt")
        assert cli.main(["generate", "hi", "-m", str(folder), "--json", *chosen]) == 1
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert (report["finish_reason"], report["ending"], report["answer"]) == ("error", "error", "")
        assert err.startswith(f"qwq: {folder}: prompt: ")


@pytest.mark.parametrize("backend", ["core", "numpy"])
def test_the_place_is_found_in_every_row_that_is_asked_for(scripted, tmp_path, backend):
    """The head is at fault for one token of several, which is not the last."""
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    model, number = broken(scripted, tmp_path, backend)
    fault = rf": positions 0 to 3: the embedding of token {number}, at position 2, is not finite"
    with pytest.raises(NonFiniteError, match=fault):
        model.logits([1, 2, number, 3])
    run = model.backend.run

    def one_row(ids, sequence, rows, tap=None, progress=None):
        """As `run`, but the head gives NaN for token 3."""

        def shown(name, x):
            if name == "lm_head" and len(x) == len(ids):
                x[np.asarray(ids) == 3] = np.nan
            if tap is not None:
                tap(name, x)

        return run(ids, sequence, rows, shown, progress)

    model.backend.run = one_row
    with pytest.raises(NonFiniteError, match="the logits hold NaN, and all layers are finite"):
        model.logits([1, 3, 2, 4])


@pytest.mark.parametrize("kv", ["int8", "fp32"])
@pytest.mark.parametrize(("name", "bad"), [("q", np.nan), ("k", -np.inf), ("v", 1e17)])
def test_the_reference_refuses_what_the_core_refuses(kv, name, bad):
    config = Config.from_dict(CONFIG)
    weights = random_weights(config, 1)
    weights[f"model.layers.1.self_attn.{name}_proj.bias"][1] = bad
    words = r"layers\.1\.self_attn.*: queries, keys or values are not finite, or beyond 2"
    with np.errstate(all="ignore"):
        prepared = engine.prepare(config, weights, "fp32")
        with pytest.raises(ValueError, match=words):
            engine.forward(config, prepared, [1, 2], engine.empty_cache(config, kv))


# --- at run time ----------------------------------------------------------------------------------------------------


def broken(scripted, tmp_path, backend, token="7"):
    """A model that says "1234567890", whose embedding of one token is NaN; read without a look at its weights."""
    folder = scripted("abc", "1234567890")
    if backend == "numpy":
        model = qwq_ref.load(folder, backend="numpy")
        row = model.backend.tensors["model.embed_tokens.weight"]
    else:
        model = qwq_ref.load(folder, weights="fp32")
        row = model.backend.weights.embedding
    (number,) = model.tokenizer.encode(token)
    row[number, 5] = np.nan
    return model, number


@pytest.mark.parametrize("backend", ["core", "numpy"])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1e-9, "seed": 1}])
def test_the_decode_step_is_named(scripted, tmp_path, backend, sampling):
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    model, number = broken(scripted, tmp_path, backend)
    generation = model.generate("hello", **sampling)
    pieces = []
    with pytest.raises(NonFiniteError) as caught:
        pieces.extend(map(str, generation))
    steps = len(generation.run.output)
    assert generation.run.output[-1] == number
    assert "".join(pieces).endswith("1234567")
    position = len(generation.run.prompt) + steps - 1
    fault = f"the embedding of token {number}, at position {position}, is not finite"
    assert str(caught.value) == f"{model.path}: decode step {steps}: {fault}"


@pytest.mark.parametrize("backend", ["core", "numpy"])
def test_a_session_keeps_what_was_good(scripted, tmp_path, backend):
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    model, number = broken(scripted, tmp_path, backend)
    session, other = model.session(), model.session()
    session.extend([1, 2, 3])
    with pytest.raises(NonFiniteError, match=f": positions 3 to 5: .* of token {number}, at position 4, "):
        session.extend([4, number, 5])
    assert session.ids == [1, 2, 3]
    session.extend([4, 5])
    other.extend([1, 2, 3, 4, 5])
    assert np.array_equal(session.next_logits(), other.next_logits())


def test_a_long_prompt_ends_at_its_first_bad_chunk(scripted, tmp_path):
    model, number = broken(scripted, tmp_path, "numpy")
    model.backend.chunk = 10
    seen = []
    session = model.session()
    with pytest.raises(NonFiniteError, match=f"embedding of token {number}, at position 13,"):
        session.extend([1] * 13 + [number] + [2] * 500, progress=seen.append)
    assert len(session.ids) == 10
    assert sum(seen) == 10


def test_answers_of_many_prompts_end_too(scripted, tmp_path):
    model, number = broken(scripted, tmp_path, "numpy")
    limits = {"end_ids": (), "vocabulary": SIZE, "max_tokens": 3, "seed": 0}
    with pytest.raises(NonFiniteError, match=f"embedding of token {number}"):
        answers_each(model.backend, [[1, 2], [1, number]], Sampling(0.6), **limits)


def test_an_error_of_the_machine_is_told_from_one_of_the_weights(scripted, tmp_path):
    """Logits that are finite when they are computed again."""
    model = qwq_ref.load(scripted("abc", "1234567890"), backend="numpy")
    run, calls = model.backend.run, []

    def once(*arguments, **named):
        logits = run(*arguments, **named)
        calls.append(logits)
        return logits * np.nan if len(calls) == 1 else logits

    model.backend.run = once
    with pytest.raises(NonFiniteError, match="prompt: not finite the first time, finite when computed again: check"):
        list(model.generate("hello"))


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["core", "numpy"])
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_the_commands_say_it_in_one_line(tmp_path, capsys, backend, name):
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    folder = model_folder(tmp_path / "x", name, 7 if "norm" in name else (7, 7))
    place = "[7]" if "norm" in name else "[7, 7]"
    line = f"qwq: {folder}/model.safetensors: {name}: holds NaN at {place}\n"
    for command in (
        ["generate", "What is 1+1?", "--temp", "0", "--backend", backend],
        ["generate", "What is 1+1?", "--seed", "1", "--backend", backend],
        ["eval", "--categories", "add3", "-n", "1", "--backend", backend],
        ["info", "--check"],
    ):
        where = [str(folder)] if command[0] == "info" else ["-m", str(folder)]
        assert cli.main([*command, *where]) == 1
        assert capsys.readouterr() == ("", line)
    if backend == "core":
        assert cli.main(["convert", str(tmp_path / "new"), "-m", str(folder)]) == 1
        assert capsys.readouterr() == ("", line)
        assert not (tmp_path / "new").exists()


@needs_core
def test_a_broken_row_of_an_embedding_ends_an_evaluation(tmp_path, capsys):
    """A packed embedding is read by rows, so only the step that needs the row can see it."""
    convert("qwq-nano", tmp_path / "nano", "q4")
    (number,) = qwq_ref.text.load_tokenizer(tmp_path / "nano").encode("7")
    begin = (number * 192 + 5) * 2
    folder = poked(tmp_path / "nano", tmp_path / "x", "q4", "model.embed_tokens.weight", begin, b"\xc0\x7f")
    assert cli.main(["eval", "-m", str(folder), "--categories", "add3,sort", "-n", "4", "--json"]) == 1
    err = capsys.readouterr().err
    fault = rf"(prompt|decode step \d+): the embedding of token {number}, at position \d+, is not finite"
    assert re.fullmatch(rf"qwq: {folder}: add3, {fault}\n", err)
