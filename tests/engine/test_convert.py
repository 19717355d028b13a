"""qwq convert: what it writes is what `load` would have packed, and what is not that is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import qwq_ref
from qwq_ref import cli, core
from qwq_ref.engine import pieces
from qwq_ref.engine.convert import convert
from qwq_ref.engine.plan import plan
from qwq_ref.errors import CheckpointError, FileError, MemoryLimitError, UsageError
from qwq_ref.formats import packed, resolve
from qwq_ref.formats.names import packed_name
from qwq_ref.forms import FORMS

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
NANO = resolve("qwq-nano")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """qwq-nano in all forms."""
    made = tmp_path_factory.mktemp("packed") / "nano"
    for form in FORMS:
        assert convert("qwq-nano", made, form) == made / packed_name(form)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_a_converted_model_has_the_bits_of_a_loaded_one(folder, form, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 200, 40)
    wanted = qwq_ref.load("qwq-nano", weights=form).logits(ids)
    seen = []
    monkeypatch.setattr(pieces.Pieces, "run", lambda *a: pytest.fail("it was packed again"))
    model = qwq_ref.load(folder, weights=form, progress=seen.append)
    assert np.array_equal(model.logits(ids), wanted)
    assert np.array_equal(qwq_ref.load(folder / packed_name(form)).logits(ids), wanted)
    assert sum(seen) == pytest.approx(qwq_ref.footprint.parameters(model.config))
    assert "579" in "".join(map(str, model.generate("What is 123+456?", temperature=0)))


def test_slices_change_no_bit(monkeypatch):
    """Rows are packed some at a time: as few as there can be, and all at once."""
    ids = np.arange(30)
    wanted = {form: qwq_ref.load("qwq-nano", weights=form).logits(ids) for form in FORMS}
    monkeypatch.setattr(pieces, "SLICE", 1)
    for form in FORMS:
        assert np.array_equal(qwq_ref.load("qwq-nano", weights=form).logits(ids), wanted[form])


def test_the_most_exact_that_fits_is_read(folder, monkeypatch):
    assert qwq_ref.load(folder).backend.form == "fp32"
    shutil.copytree(folder, folder.parent / "some")
    for form in ("fp32", "bf16", "q8"):
        (folder.parent / "some" / packed_name(form)).unlink()
    assert qwq_ref.load(folder.parent / "some").backend.form == "q4"
    monkeypatch.setattr(qwq_ref.host.memory, "available_bytes", lambda: 1 << 20)
    with pytest.raises(MemoryLimitError):
        qwq_ref.load(folder)


def test_what_is_not_here_is_said(folder):
    only = folder.parent / "only"
    convert("qwq-nano", only, "q8")
    with pytest.raises(UsageError, match=r"weights: q4 are not here; q8 are"):
        qwq_ref.load(only, weights="q4")
    with pytest.raises(UsageError, match="numpy reads no packed weights"):
        qwq_ref.load(only, backend="numpy")
    with pytest.raises(UsageError, match="is packed already"):
        convert(only, folder.parent / "again", "q4")


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("num_hidden_layers", 1, "model.layers.1.self_attn.qkv_proj.weight"),
        ("intermediate_size", 1024, "model.layers.0.mlp.gate_up_proj.weight"),
        ("num_key_value_heads", 1, "model.layers.0.self_attn.qkv_proj.weight"),
    ],
)
def test_weights_of_another_config_are_refused(folder, tmp_path, field, value, tensor):
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((NANO / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(CheckpointError) as caught:
        qwq_ref.load(tmp_path / "other", weights="q4")
    assert caught.value.field == tensor
    assert "must be" in caught.value.problem
    assert len(str(caught.value)) < 500


def test_a_packed_file_of_another_form_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    shutil.copyfile(folder / packed_name("q8"), tmp_path / "other" / packed_name("q4"))
    with pytest.raises(CheckpointError, match=r"self_attn\.qkv_proj\.weight: must be .*q4.* but is .*q8"):
        qwq_ref.load(tmp_path / "other", weights="q4")


def test_folders_that_hold_something_else(folder, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("Dear reader")
    with pytest.raises(UsageError, match="holds something else"):
        convert("qwq-nano", tmp_path / "full", "q4")
    with pytest.raises(UsageError, match="is not a folder"):
        convert("qwq-nano", tmp_path / "full" / "letter.txt", "q4")
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer_config\.json: is of another model"):
        convert("qwq-nano", tmp_path / "other", "q4")
    room = sum(stored.nbytes for stored in plan(qwq_ref.load("qwq-nano").config, "q4").values()) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(room, 0, room))
    with pytest.raises(FileError, match="on its disk"):
        convert("qwq-nano", tmp_path / "new", "q4")
    assert not (tmp_path / "new").exists()


def test_all_files_of_the_text_come_along(tmp_path):
    """The markers are in tokenizer_config.json alone, and a template for tools lies in a folder of its own."""
    source = tmp_path / "source"
    shutil.copytree(NANO, source)
    values = json.loads((source / "tokenizer.json").read_text())
    configuration = json.loads((source / "tokenizer_config.json").read_text())
    configuration["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in values["added_tokens"]}
    (source / "tokenizer.json").write_text(json.dumps({**values, "added_tokens": []}))
    (source / "tokenizer_config.json").write_text(json.dumps(configuration))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("with tools<think>")
    packed_folder = tmp_path / "packed"
    convert(source, packed_folder, "q4")
    original, model = qwq_ref.load("qwq-nano", weights="q4"), qwq_ref.load(packed_folder)
    assert model.tokenizer.added == original.tokenizer.added
    assert model.prompt_ids("What is 123+456?") == original.prompt_ids("What is 123+456?")
    asked = model.template.encode(model.tokenizer, [{"role": "user", "content": "x"}], [])
    assert asked == model.tokenizer.encode("with tools<think>", special=True)


def test_the_command(tmp_path, capsys):
    assert cli.main(["convert", str(tmp_path / "nano"), "--weights", "q8", "-t", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'nano' / packed_name('q8')}\n"
    assert f"qwq generate -m {tmp_path / 'nano'}" in err
    with packed.PackedFile(out.strip()) as file:
        assert file.weights["lm_head.weight"].format == core.FORMATS["q8"]
    question = [sys.executable, "-m", "qwq_ref", "generate", "-m", tmp_path / "nano", "What is 123+456?", "--temp", "0"]
    assert "579" in subprocess.run(question, capture_output=True, text=True, check=True).stdout
    assert cli.main(["info", str(tmp_path / "nano")]) == 0
    assert cli.main(["convert", str(tmp_path / "nano"), "-t", "0"]) == 2


def test_beside_a_checkpoint_packed_weights_are_not_looked_for(folder, tmp_path):
    """They may be of an older one."""
    shutil.copytree(NANO, tmp_path / "both")
    shutil.copyfile(folder / packed_name("q8"), tmp_path / "both" / packed_name("q4"))
    model = qwq_ref.load(tmp_path / "both", weights="q4")
    assert np.array_equal(model.logits([1, 2, 3]), qwq_ref.load("qwq-nano", weights="q4").logits([1, 2, 3]))


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_with_a_tensor_too_few_or_too_many_is_refused(folder, tmp_path, missing):
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / packed_name("q8")
    tensors = packed.read_packed(path)
    name = "model.norm.weight" if missing else "model.more.weight"
    tensors = {key: w for key, w in tensors.items() if key != name} | (
        {} if missing else {name: tensors["model.norm.weight"]}
    )
    packed.write_packed(path, tensors)
    with pytest.raises(CheckpointError) as caught:
        qwq_ref.load(tmp_path / "other", weights="q8")
    assert caught.value.field == name
