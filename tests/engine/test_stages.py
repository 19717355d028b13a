"""Stages: the layers of a model divided, with the bits of the whole."""

import weakref

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.engine.backends import ALL, LAST, Step
from qwq_ref.engine.backends.stage import Flow, Note, Span, Stage, StagePiece, StageWeights, span_bytes, spans
from qwq_ref.engine.plan import EMBEDDING, model_bytes, plan
from qwq_ref.engine.readers import open_reader
from qwq_ref.errors import NonFiniteError
from qwq_ref.formats import open_source

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

PROMPT = [5, 9, 200, 31, 7, 7, 100, 3, 42]


@pytest.fixture(scope="module", params=[("fp32", "fp32"), ("q4", "int8")], ids=lambda forms: forms[0])
def whole(request):
    form, kv = request.param
    return qwq_ref.load("qwq-nano", weights=form, kv=kv, threads=1)


def divided(whole, count, threads=1):
    """The stages of the same model."""
    stages, form = [], whole.backend.form
    for span in spans(whole.config, form, count):
        source = open_source(whole.path)
        weights = StageWeights(whole.config, form, span, open_reader(source, form, threads))
        stages.append(Stage(whole.config, weights, whole.context, whole.backend.kv, None, threads))
        weakref.finalize(weights, source.close)
    return stages


def run(stages, *pieces, tapped=False):
    flow = None
    for stage in stages:
        flow = stage.flow(pieces, flow, tapped)
    return flow


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stages_have_the_bits_of_the_whole(whole, count):
    stages = divided(whole, count)
    sequence = whole.backend.sequence()
    wanted = [whole.backend.run(PROMPT[:6], sequence, ALL), whole.backend.run(PROMPT[6:], sequence, LAST)]
    got = [run(stages, StagePiece(1, 0, PROMPT[:6], ALL)), run(stages, StagePiece(1, 6, PROMPT[6:], LAST))]
    for flow, right in zip(got, wanted, strict=True):
        assert flow.problem is None
        np.testing.assert_array_equal(flow.x.view(np.uint32), right.view(np.uint32))


def test_pieces_together_and_no_rows(whole):
    """A piece without wanted rows gives no logits; sequences share a step."""
    stages, backend = divided(whole, 2), whole.backend
    a, b = backend.sequence(), backend.sequence()
    backend.run(PROMPT, a, LAST)
    right = backend.run_together([Step([1, 2], a, ALL), Step(PROMPT, b, LAST)])
    assert run(stages, StagePiece(1, 0, PROMPT[:5], slice(0, 0))).x.shape == (0, whole.config.V)
    assert run(stages, StagePiece(1, 5, PROMPT[5:], slice(0, 0))).x.shape == (0, whole.config.V)
    got = run(stages, StagePiece(1, 9, [1, 2], ALL), StagePiece(2, 0, PROMPT, LAST)).x
    np.testing.assert_array_equal(got.view(np.uint32), np.concatenate(right).view(np.uint32))


def test_taps_have_the_names_of_the_whole(whole):
    seen, wanted = run(divided(whole, 3), StagePiece(1, 0, PROMPT, ALL), tapped=True).taps, []
    whole.backend.run(PROMPT, whole.backend.sequence(), ALL, lambda name, x: wanted.append((name, x.copy())))
    assert [name for name, _ in seen] == [name for name, _ in wanted]
    for (_, ours), (_, right) in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(ours, right)


def test_what_lies_behind_the_start_is_forgotten(whole):
    """A step that is repeated, because a later stage was lost, gives the same bits."""
    stages = divided(whole, 2)
    run(stages, StagePiece(1, 0, PROMPT, LAST))
    first = run(stages, StagePiece(1, 9, [4, 4, 4], LAST)).x
    stages[0].flow([StagePiece(1, 9, [8], LAST)], None)
    np.testing.assert_array_equal(run(stages, StagePiece(1, 9, [4, 4, 4], LAST)).x, first)


def test_a_stage_that_lost_a_sequence_says_so(whole):
    stages = divided(whole, 3)
    run(stages, StagePiece(1, 0, PROMPT, LAST), StagePiece(2, 0, PROMPT, LAST))
    stages[1].note([Note(2)])
    assert run(stages, StagePiece(1, 9, [4], LAST), StagePiece(2, 9, [4], LAST)) == Flow(lost=[2])
    assert run(stages, StagePiece(1, 10, [4], LAST)).lost == [1]  # the step before ended at the second stage
    assert run(stages, StagePiece(1, 9, [4], LAST)).x is not None


def test_forks_and_rollbacks(whole):
    stages, backend = divided(whole, 2), whole.backend
    sequence = backend.sequence()
    backend.run(PROMPT[:7], sequence, LAST)
    right = backend.run([1, 2], sequence, LAST)
    run(stages, StagePiece(1, 0, PROMPT, LAST))
    for stage in stages:
        stage.note([Note(1, 7, new=2), Note(1, 2), Note(9, 3), Note(1, 99)])
    np.testing.assert_array_equal(run(stages, StagePiece(2, 7, [1, 2], LAST)).x, right)
    assert run(stages, StagePiece(1, 3, [1], LAST)).lost == [1]
    run(stages, StagePiece(1, 2, PROMPT[2:7], LAST))
    np.testing.assert_array_equal(run(stages, StagePiece(1, 7, [1, 2], LAST)).x, right)


def test_an_error_passes_through_with_the_layer_of_the_model(whole, monkeypatch):
    stages = divided(whole, 3)
    layer = stages[1].layers[0]

    def fails(*_):
        raise core.OutOfRange(None, "x", "is too large")

    monkeypatch.setattr(layer, "step", fails)
    flow = run(stages, StagePiece(1, 0, PROMPT, LAST))
    assert isinstance(flow.problem, NonFiniteError)
    assert flow.problem.field == f"layer {stages[1].first}"


@pytest.mark.parametrize("form", ["fp32", "bf16", "q8", "q4"])
def test_layers_are_shared_out_by_bytes(form):
    config = qwq_ref.config.Config.from_file(qwq_ref.formats.resolve("qwq-32b", weights=False) / "config.json")
    for count in (1, 2, 3, 4, 7, 63, 64):
        found = spans(config, form, count)
        assert [span.begin for span in found] == [0, *(span.end for span in found[:-1])]
        assert len(found) == count
        assert found[-1].end == config.L
        assert all(span.begin < span.end for span in found)
        sizes = [span_bytes(config, form, span) for span in found]
        layer = sizes[0] // (found[0].end - found[0].begin)
        last = span_bytes(config, form, Span(config.L - 1, config.L, config.L))  # with the head, which is not divided
        assert max(sizes) <= max(last, sum(sizes) / count + 2 * layer)
    planned = plan(config, form)
    vectors = sum(stored.nbytes for stored in planned.values() if stored.format is None) - planned[EMBEDDING].nbytes
    assert sum(sizes) == pytest.approx(model_bytes(config, form) - vectors - planned[EMBEDDING].nbytes, rel=1e-4)


def test_more_stages_than_layers(whole):
    with pytest.raises(ValueError, match="4 layers cannot be 5 stages"):
        spans(whole.config, "q4", whole.config.L + 1)


def test_a_stage_holds_its_own_layers_alone(whole):
    config, form = whole.config, whole.backend.form
    stages = divided(whole, 2)
    assert sum(len(stage.weights.layers) for stage in stages) == config.L
    assert [len(stage.weights.head_pieces) for stage in stages] == [0, 1]
    assert Span(0, 1, 2).starts
    assert sum(stage.pool.bytes for stage in stages) == whole.backend.pool.bytes
    assert span_bytes(config, form, spans(config, form, 2)[0]) < model_bytes(config, form) * 0.7
