"""Tied models: in floats, the packed head is the embedding, too."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

import qwq_ref
from qwq_ref import core, footprint
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine.convert import convert
from qwq_ref.engine.fit import core_needs
from qwq_ref.engine.plan import EMBEDDING, HEAD, head_is_embedding, model_bytes, step_bytes
from qwq_ref.engine.weights import embed
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import packed
from qwq_ref.forms import FORMS
from tests.support.checkpoints import PADDED, write_checkpoint
from tests.support.models import config_values, random_weights
from tests.support.paths import QWQ_CONFIG

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tied checkpoint in bfloat16."""
    values = config_values(vocab_size=PADDED, tie_word_embeddings=True)
    weights = random_weights(Config.from_dict(values), 7)
    rounded = {name: w.astype(ml_dtypes.bfloat16) for name, w in weights.items()}
    return write_checkpoint(tmp_path_factory.mktemp("tied"), values, rounded)


def test_a_tied_model_in_floats_holds_its_embedding_once():
    """The untied model has one more matrix of the vocabulary in floats; in q8 and q4, both heads differ in format."""
    untied = Config.from_file(QWQ_CONFIG)
    tied = dataclasses.replace(untied, tie_word_embeddings=True)
    numbers = untied.V * untied.D
    saved = {form: model_bytes(untied, form) - model_bytes(tied, form) for form in FORMS}
    assert saved == {"fp32": 4 * numbers, "bf16": 2 * numbers, "q8": 0, "q4": 0}
    assert [form for form in FORMS if head_is_embedding(tied, form)] == ["fp32", "bf16"]
    assert not any(head_is_embedding(untied, form) for form in FORMS)
    for form in ("fp32", "bf16"):  # a step reads the whole head, and of a separate embedding one row more
        row = footprint.DTYPE_BYTES[form] * untied.D
        assert step_bytes(tied, form) == model_bytes(tied, form) == step_bytes(untied, form) - row


@needs_core
@pytest.mark.parametrize("form", FORMS)
def test_all_reports_and_the_file_and_memory_give_the_same_bytes(folder, tmp_path, capsys, form):
    path = convert(folder, tmp_path / "packed", form)
    with packed.PackedFile(path) as file:
        wanted = sum(stored.nbytes for stored in file.weights.values())
        assert (EMBEDDING in file.weights) == (form in ("q8", "q4"))
    logits = []
    for source in (folder, path.parent):
        assert main(["info", str(source), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["weight_bytes"][form] == wanted
        assert main(["doctor", "-m", str(source), "--json"]) in (0, 1)
        (facts,) = json.loads(capsys.readouterr().out)["models"]
        assert {choice["weights"]: choice["weight_bytes"] for choice in facts["choices"]}[form] == wanted
        announced = []
        model = qwq_ref.load(source, weights=form, context=64, announce=lambda *a, to=announced: to.append(a))
        ((_, total),) = announced
        needs = core_needs(model.config, form, FORMS[form].kv)(64)
        assert needs["weights"] == wanted
        assert total == sum(needs.values())
        held = model.backend.weights
        assert (held.embedding is held.head) == head_is_embedding(model.config, form)
        logits.append(model.logits([5, 0, PADDED - 1]))
    assert np.array_equal(*logits)


@needs_core
@pytest.mark.parametrize("form", ["fp32", "bf16"])
def test_the_embedding_is_read_from_the_head_to_the_bit(folder, form):
    weights = qwq_ref.load(folder, weights=form).backend.weights
    with qwq_ref.formats.Checkpoint.open(folder) as checkpoint:
        table = checkpoint[EMBEDDING]
    ids = np.array([0, 31, 32, PADDED - 1, 0])
    got = embed(ids, weights.embedding)
    assert got.dtype == np.float32
    assert got.tobytes() == np.asarray(table, np.float32)[ids].tobytes()


@needs_core
@pytest.mark.parametrize("form", ["fp32", "bf16"])
def test_a_file_that_holds_both_is_refused_in_one_line(folder, tmp_path, form):
    """Earlier versions wrote such files."""
    path = convert(folder, tmp_path / "packed", form)
    tensors = packed.read_packed(path)
    plain = core.unpack_rows(tensors[HEAD], np.arange(PADDED))
    packed.write_packed(path, {EMBEDDING: plain, **tensors})
    with pytest.raises(CheckpointError) as caught:
        qwq_ref.load(path.parent)
    assert caught.value.field == EMBEDDING
    assert caught.value.problem == f"must be absent from {form} by config.json: convert the checkpoint again"
