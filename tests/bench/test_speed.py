"""The ceilings of a model's speed: arithmetic and measurement."""

import pytest

from qwq_ref import core, footprint
from qwq_ref.bench import measure
from qwq_ref.bench import speed as speeds
from qwq_ref.bench.ops import peak_of
from qwq_ref.config import Config
from qwq_ref.engine.packing import pack_weights
from qwq_ref.engine.plan import model_bytes, step_bytes
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.forms import FORMS
from qwq_ref.host import cpu
from tests.support.models import config_values

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
NANO = Config.from_file(resolve("qwq-nano") / "config.json")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Read little memory, for a short time."""
    monkeypatch.setattr(measure, "rotation", lambda: 1 << 20)
    monkeypatch.setattr(speeds, "SPAN", 1e-4)


@needs_core
def test_measuring_reads_more_than_all_last_caches_hold(tmp_path, monkeypatch):
    monkeypatch.undo()  # of measure.rotation
    many = cpu.Processors("", 8, 8, None, 8, 1, 32 << 20, 12 * 32 << 20, None)
    monkeypatch.setattr(measure, "processors", lambda: many)
    assert measure.rotation() == 4 * 12 * 32 << 20
    assert measure.last_cache_bytes() == 32 << 20


@needs_core
@pytest.mark.parametrize("form", FORMS)
def test_a_step_reads_all_that_is_packed_but_of_the_embedding_a_row(form):
    with Checkpoint.open(resolve("qwq-nano")) as checkpoint:
        packed = pack_weights(NANO, checkpoint, form, 1)
    linear = [w.packed for layer in packed.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    vectors = [v for layer in packed.layers for v in (layer.input_norm, layer.qkv_bias, layer.post_norm)]
    held = sum(a.nbytes for a in [*linear, *vectors, packed.norm, packed.head.packed])
    assert step_bytes(NANO, form) == held + packed.embedding[0].nbytes
    assert model_bytes(NANO, form) == held + packed.embedding.nbytes


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_of_a_prompt_needs_no_head(tied):
    config = Config.from_dict(config_values(tie_word_embeddings=tied))
    layer = (config.H + 2 * config.K) * config.E * config.D + config.D * config.H * config.E + 3 * config.F * config.D
    assert footprint.flops_per_token(config, 0, head=False) == 2 * config.L * layer
    assert footprint.flops_per_token(config, 0) == 2 * (config.L * layer + config.V * config.D)
    assert footprint.flops_per_token(config, 7) - footprint.flops_per_token(config, 0) == 4 * 7 * 2 * 80


@needs_core
def test_the_ceiling_is_what_takes_longer():
    names = {form: measure.ceilings.instructions(peak_of(core.FORMATS[form]), core.isas()[-1]) for form in FORMS}
    reads, peaks = {1: 1e9, 2: 2e9}, dict.fromkeys(names.values(), 5e9)
    speed = speeds.Speed(core.isas()[-1], 2, reads, peaks, None)
    config = Config.from_file(resolve("qwq-32b") / "config.json")
    for form in FORMS:
        found = speeds.limits(config, form, speed, 32 << 20)
        assert not found.cached
        assert found.output == min(2e9 / step_bytes(config, form), 5e9 / (footprint.flops_per_token(config, 0) / 2))
        assert found.prompt == 5e9 / (footprint.flops_per_token(config, 0, head=False) / 2)
        held = speeds.limits(NANO, form, speed, 32 << 20)
        assert held.cached
        assert held.output == 5e9 / (footprint.flops_per_token(NANO, 0) / 2)
    assert speeds.limits(config, "q4", speed, 32 << 20).output != speeds.limits(config, "fp32", speed, 32 << 20).output
    scalar = speeds.limits(config, "q4", speeds.Speed("scalar", 2, reads, {}, None), 32 << 20)
    assert (scalar.output, scalar.prompt) == (2e9 / step_bytes(config, "q4"), None)
    assert speeds.limits(NANO, "q4", speeds.Speed("scalar", 2, reads, {}, None), 32 << 20).output is None
    assert speeds.limits(config, "q4", None, 32 << 20).output is None


@needs_core
@pytest.mark.parametrize("isa", core.isas() if core.available() else [])
def test_all_threads_and_every_instruction_are_measured(isa):
    rounds = []
    speed = speeds.measure_speed(3, isa, rounds.append)
    assert rounds == [1] * speeds.SAMPLES
    assert set(speed.reads) == {1, 3}
    wanted = {measure.ceilings.instructions(peak_of(core.FORMATS[form]), isa) for form in FORMS}
    assert set(speed.peaks) == (set() if isa == "scalar" else wanted)
    assert all(rate > 0 for rate in [*speed.reads.values(), *speed.peaks.values()])
