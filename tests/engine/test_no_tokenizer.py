"""A folder without a tokenizer: the model computes logits, and names the missing file where text is asked for."""

import shutil

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.engine.convert import convert
from qwq_ref.errors import TokenizerError
from qwq_ref.formats import Checkpoint

IDS = [3, 1, 4, 1, 5]
PROBLEM = "is missing: without it, the model computes logits of token ids, and has no text"
needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")


@pytest.fixture
def bare(random_folder, tmp_path):
    """The folder of `random_model`, config and weights alone."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(random_folder / name, folder)
    return folder


@pytest.mark.parametrize("backend", ["numpy", pytest.param("core", marks=needs_core)])
def test_logits_need_no_tokenizer(bare, random_folder, backend):
    ours = qwq_ref.load(bare, backend=backend)
    assert np.array_equal(ours.logits(IDS), qwq_ref.load(random_folder, backend=backend).logits(IDS))
    session = ours.session()
    session.extend(IDS)
    assert session.next_logits().shape == (ours.config.V,)
    calls = (lambda: ours.tokenizer, lambda: ours.generate("x", raw=True), lambda: ours.prompt_ids("x", raw=True))
    for call in calls:
        with pytest.raises(TokenizerError) as caught:
            call()
        assert str(caught.value) == f"{bare / 'tokenizer.json'}: {PROBLEM}"


def test_a_file_alone_has_no_tokenizer_either(bare):
    model = qwq_ref.load(bare / "model.safetensors", backend="numpy")
    with pytest.raises(TokenizerError, match=f"bare/tokenizer.json: {PROBLEM}"):
        _ = model.tokenizer


@pytest.mark.parametrize("command", ["generate hello -n 1 -m", "generate hello -n 1 --raw -m", "eval -n 1 -m"])
def test_commands_with_text_refuse_before_weights_are_read(bare, command, monkeypatch, capsys):
    monkeypatch.setattr(Checkpoint, "read_into", lambda *a: pytest.fail("it was read"))
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda *a: pytest.fail("it was read"))
    assert main([*command.split(), str(bare)]) == 1
    assert capsys.readouterr() == ("", f"qwq: {bare / 'tokenizer.json'}: {PROBLEM}\n")


def test_a_golden_pack_is_recorded_from_token_ids(bare, tmp_path, capsys):
    arguments = ["golden", "record", "-m", str(bare), "-o", str(tmp_path / "pack")]
    assert main([*arguments, "-p", "hello"]) == 2
    assert capsys.readouterr().err == f"qwq: {bare / 'tokenizer.json'}: is missing: give token ids with --ids\n"
    assert main([*arguments, "--ids", "1,2,3", "--taps", "lm_head"]) == 0
    assert (tmp_path / "pack" / "manifest.json").is_file()


@needs_core
def test_packed_weights_and_measurements_need_no_tokenizer(bare, tmp_path, capsys):
    convert(bare, tmp_path / "packed", "q8")
    model = qwq_ref.load(tmp_path / "packed")
    assert model.logits(IDS).shape == (5, model.config.V)
    with pytest.raises(TokenizerError, match=PROBLEM):
        _ = model.tokenizer
    assert main(["bench", "-m", str(tmp_path / "packed"), "-p", "2", "-n", "1", "-r", "1", "--weights", "q8"]) == 0
    assert "pp2" in capsys.readouterr().out


def test_a_broken_link_is_no_absent_tokenizer(bare):
    (bare / "tokenizer.json").symlink_to("nowhere")
    with pytest.raises(TokenizerError, match="cannot be opened"):
        qwq_ref.load(bare, backend="numpy")
