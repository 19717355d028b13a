"""One table of weight forms: `info`, `doctor`, the announcement, the packed file and memory agree to the byte."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref import core, footprint
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.core.attention import empty_kv, kv_bytes
from qwq_ref.engine.cache import cache_bytes
from qwq_ref.engine.convert import convert
from qwq_ref.engine.fit import available_forms, candidates, core_needs
from qwq_ref.engine.packing import pack_weights
from qwq_ref.engine.plan import head_is_embedding, model_bytes, plan, step_bytes
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.formats.names import packed_name
from qwq_ref.formats.packed import PackedFile, Stored
from qwq_ref.forms import FORMS, KV_FORMS
from tests.support.models import configs, random_weights
from tests.support.paths import QWQ_CONFIG

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")


def told(capsys, *arguments):
    """Return the JSON that a command prints."""
    assert main([*arguments, "--json"]) in (0, 1)
    return json.loads(capsys.readouterr().out)


def sizes_of_doctor(facts):
    (model,) = facts["models"]
    return {choice["weights"]: choice["weight_bytes"] for choice in model["choices"]}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """qwq-nano in every form: form -> a folder of its own."""
    folder = tmp_path_factory.mktemp("forms")
    for form in FORMS:
        convert("qwq-nano", folder / form, form)
    return folder


def test_the_table_names_formats_that_exist():
    for name, form in FORMS.items():
        assert {form.matrix, form.head} <= set(core.FORMATS), name
        assert form.embedding in ("F32", "BF16")
        assert form.kv in KV_FORMS
        assert form.floats == (core.FORMATS[form.matrix].group == 0)


@needs_core
@pytest.mark.parametrize("form", FORMS)
def test_all_reports_give_the_same_bytes(packed, capsys, form):
    """qwq-nano: `info`, `doctor`, the announcement, the file, and the arrays in memory."""
    config = Config.from_file(resolve("qwq-nano") / "config.json")
    with PackedFile(packed / form / packed_name(form)) as file:
        wanted = sum(tensor.nbytes for tensor in file._file.tensors.values())
        data = file.nbytes
    assert 0 <= data - wanted < 64  # the file's data is the tensors, back to back, but for an alignment at its start
    assert model_bytes(config, form) == wanted
    assert told(capsys, "info", "qwq-nano")["weight_bytes"][form] == wanted
    assert told(capsys, "info", str(packed / form))["weight_bytes"][form] == wanted
    assert sizes_of_doctor(told(capsys, "doctor", "-m", "qwq-nano"))[form] == wanted
    for folder in ("qwq-nano", packed / form):
        announced = []
        model = qwq_ref.load(folder, weights=form, context=300, announce=lambda *a, to=announced: to.append(a))
        ((line, total),) = announced
        needs = core_needs(config, form, FORMS[form].kv)(300)
        assert line.startswith(f"weights {form}, KV cache {FORMS[form].kv}, 300 tokens of context: ")
        assert f"weights {footprint.human(wanted)} + KV cache {footprint.human(needs['KV cache'])}" in line
        assert total - needs["KV cache"] - needs["scratch"] == wanted
        held = model.backend.weights
        layers = [array for layer in held.layers for array in dataclasses.astuple(layer)]
        arrays = [a if isinstance(a, np.ndarray) else a[1] for a in layers] + [held.embedding, held.norm]
        assert sum(array.nbytes for array in arrays) + held.head.packed.nbytes == wanted
        pool = model.backend.pool
        assert pool.bytes * 3 == needs["KV cache"] == cache_bytes(config, FORMS[form].kv, 300)  # 300 in pages of 128


@needs_core
def test_of_qwq_32b_info_doctor_and_plan_agree(capsys):
    config = Config.from_file(QWQ_CONFIG)
    info, doctor = told(capsys, "info", "qwq-32b"), told(capsys, "doctor", "-m", "qwq-32b")
    wanted = {form: model_bytes(config, form) for form in FORMS}
    assert info["weight_bytes"] == sizes_of_doctor(doctor) == wanted
    assert wanted == {"fp32": 131_055_505_408, "bf16": 65_529_991_168, "q8": 34_545_307_648, "q4": 18_942_496_768}
    read = {form: limit["step_bytes"] for form, limit in doctor["models"][0]["limits"].items()}
    assert info["read_bytes_per_token"] == read == {form: step_bytes(config, form) for form in FORMS}
    for row in info["contexts"]:
        for form in FORMS:
            for kv in KV_FORMS:
                wanted = model_bytes(config, form) + cache_bytes(config, kv, row["context"])
                assert row["memory_bytes"][f"{form}+{kv}"] == wanted
                needs = core_needs(config, form, kv)(row["context"])
                assert needs["weights"] + needs["KV cache"] == wanted


@settings(max_examples=settings.default.max_examples // 4, deadline=None)
@given(st.data())
def test_any_architecture_is_packed_to_the_planned_bytes(data):
    if not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    config = Config.from_dict(data.draw(configs()) | {"swiglu_beta": 1.0})
    form = data.draw(st.sampled_from([*FORMS]))
    weights = random_weights(config, 0)
    if form == "bf16":
        weights = {name: (w.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, w in weights.items()}
    made = pack_weights(config, weights, form, 1)
    planned = plan(config, form)
    held = {"model.embed_tokens.weight": made.embedding, "model.norm.weight": made.norm, "lm_head.weight": made.head}
    if head_is_embedding(config, form):
        assert held.pop("model.embed_tokens.weight") is made.head
    for i, layer in enumerate(made.layers):
        names = [name for name in planned if name.startswith(f"model.layers.{i}.")]
        held |= zip(names, (getattr(layer, field.name) for field in dataclasses.fields(layer)), strict=True)
    assert {name: Stored.of(tensor) for name, tensor in held.items()} == planned
    for name, tensor in held.items():
        assert (tensor.packed if isinstance(tensor, core.Packed) else tensor).nbytes == planned[name].nbytes
    if isinstance(made.embedding, core.Packed):
        assert step_bytes(config, form) == model_bytes(config, form)
    else:
        assert step_bytes(config, form) == model_bytes(config, form) - made.embedding.nbytes + made.embedding[0].nbytes


@needs_core
@given(st.sampled_from(KV_FORMS), st.integers(1, 5000), st.integers(1, 9), st.integers(1, 200))
def test_cache_bytes_are_those_of_the_core(form, capacity, K, E):
    config = Config.from_file(QWQ_CONFIG)
    config = dataclasses.replace(config, num_hidden_layers=3, num_key_value_heads=K, head_dim=E)
    assert cache_bytes(config, form, capacity) == 3 * kv_bytes(form, capacity, K, E)
    assert kv_bytes(form, capacity, K, E) == empty_kv(form, capacity, K, E).buffer.nbytes


def test_forms_to_choose_from():
    """bf16 is for a checkpoint of bfloat16 alone, where it is as exact as fp32; packed weights stay as they are."""
    assert available_forms({"BF16": 1}) == ["fp32", "bf16", "q8", "q4"]
    assert candidates({"BF16": 1}) == ["bf16", "q8", "q4"]
    for stored in ({"F32": 1}, {"BF16": 1, "F32": 1}, {"F16": 1}, {}):
        assert available_forms(stored) == candidates(stored) == ["fp32", "q8", "q4"]
    for packed in (("q4", "q8"), ("bf16", "fp32"), ("q4",)):
        assert available_forms({}, packed) == candidates({}, packed) == [form for form in FORMS if form in packed]
    for beta, exact in ((1.0, True), (0.25, True), (2.0, True), (0.6931, False), (1e-38, False), (3.0, False)):
        wanted = ["bf16", "q8", "q4"] if exact else ["fp32", "q8", "q4"]
        assert candidates({"BF16": 1}, (), beta) == wanted
        assert candidates({}, ("bf16",), beta) == ["bf16"]


@needs_core
def test_reports_of_a_packed_folder_list_its_forms(packed, capsys, tmp_path):
    folder = tmp_path / "two"
    for form in ("q4", "bf16"):
        convert("qwq-nano", folder, form)
    sizes = {form: (folder / packed_name(form)).stat().st_size for form in ("bf16", "q4")}
    info, doctor = told(capsys, "info", str(folder)), told(capsys, "doctor", "-m", str(folder))
    assert list(info["packed_bytes"]) == ["bf16", "q4"]
    assert "stored_bytes" not in info
    for form, size in info["packed_bytes"].items():
        assert size == info["weight_bytes"][form]
        assert 0 < sizes[form] - size < 8192  # the header
    assert sizes_of_doctor(doctor) == info["packed_bytes"]
    assert list(doctor["models"][0]["limits"]) == ["bf16", "q4"]
    assert doctor["models"][0]["best"]["weights"] == "bf16"
    assert main(["info", str(folder)]) == 0
    assert "stored: packed bf16 3.76 MiB, q4 1.19 MiB" in capsys.readouterr().out
    assert main(["info", str(folder / packed_name("q4"))]) == 0
    assert "stored: packed q4 1.19 MiB" in capsys.readouterr().out
    assert main(["info", str(folder), "--check"]) == 2
    assert "packed weights cannot be checked" in capsys.readouterr().err


def test_info_of_a_checkpoint_that_is_tied(capsys):
    with Checkpoint.open(resolve("qwq-nano")) as checkpoint:
        config, stored = checkpoint.config, checkpoint.dtypes
    assert footprint.weight_bytes(config, "bf16") == sum(stored.values())
    assert told(capsys, "info", "qwq-nano")["stored_bytes"] == stored
