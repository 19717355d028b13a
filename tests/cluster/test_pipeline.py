"""A pipeline of stages in this process: the bits of one backend, whatever is lost on the way.

`test_ray.py` runs the same on a cluster.
"""

import gc
import itertools

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cluster import pipeline
from qwq_ref.cluster.elsewhere import ModelThere, weight_files
from qwq_ref.cluster.groups import groups
from qwq_ref.cluster.pipeline import PipelineBackend
from qwq_ref.cluster.stages import StageActor, load_stage
from qwq_ref.engine.backends import ALL, LAST, Step
from qwq_ref.engine.backends.stage import spans
from qwq_ref.engine.model import Model
from qwq_ref.errors import ClusterError, UsageError
from tests.support.actors import Actors

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

RNG = np.random.default_rng(1)
LONG = RNG.integers(0, 300, 150).tolist()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(pipeline, "_PAUSE", 0)


@pytest.fixture(scope="module")
def whole():
    return qwq_ref.load("qwq-nano", weights="q8", threads=1)


def there(whole, **changes):
    backend = whole.backend
    files = weight_files(whole.path)
    how = {"name": str(whole.path), "files": files, "weights": backend.form, "kv": backend.kv}
    return ModelThere(**how | {"context": whole.context, "rope": None, "isa": None} | changes)


def actors_of(whole, count, **changes):
    model, found = there(whole, **changes), spans(whole.config, whole.backend.form, count)
    return Actors(lambda i: StageActor(lambda: load_stage(model, found[i], 1), str(i)))


def piped(whole, actors, count, told=lambda line: None):
    backend = whole.backend
    return PipelineBackend(
        whole.config, whole.context, backend.form, backend.kv, backend.isa, actors.calls, count, told
    )


def same(ours, right):
    np.testing.assert_array_equal(np.asarray(ours).view(np.uint32), np.asarray(right).view(np.uint32))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_steps_have_the_bits_of_one_backend(whole, count):
    backend = piped(whole, actors_of(whole, count), count)
    a, b, c, d = (each.sequence() for each in (backend, whole.backend) * 2)
    for rows in (ALL, LAST, slice(3, 140, 7)):
        same(backend.run(LONG, a, rows), whole.backend.run(LONG, b, rows))
    steps = [([5], LAST), (LONG[:70], LAST)]
    ours = backend.run_together([Step(ids, each, rows) for (ids, rows), each in zip(steps, (a, c), strict=True)])
    right = whole.backend.run_together([Step(ids, each, rows) for (ids, rows), each in zip(steps, (b, d), strict=True)])
    for mine, theirs in zip(ours, right, strict=True):
        same(mine, theirs)
    assert (a.length, c.length) == (b.length, d.length)


def test_rollback_and_fork(whole):
    backend = piped(whole, actors_of(whole, 2), 2)
    a, b = backend.sequence(), whole.backend.sequence()
    for own, each in ((backend, a), (whole.backend, b)):
        own.run(LONG[:40], each, LAST)
    fork, right = a.fork(33), b.fork(33)
    for own, each in ((backend, a), (whole.backend, b)):
        each.rollback(20)
        own.run([7, 8, 9], each, LAST)
    same(backend.run([1, 2], fork, ALL), whole.backend.run([1, 2], right, ALL))
    same(backend.run([3, 4], a, ALL), whole.backend.run([3, 4], b, ALL))
    with pytest.raises(ValueError, match="length must be 0 to 25"):
        a.rollback(26)


def test_answers_are_those_of_one_process(whole):
    backend = piped(whole, actors_of(whole, 2), 2)
    model = Model(whole.path, backend, whole.tokenizer, whole.template, whole.defaults, 3)
    questions = ["What is 12+34?", "What is 9*8?", "Sort 3 1 2", "What is 5-7?"]
    how = {"seed": 3, "max_tokens": 40, "temperature": 0.7}

    def said(model):
        return {number: (answer.run.output, answer.texts) for number, answer in model.generate_all(questions, **how)}

    assert said(model) == said(whole)
    answer = model.generate(questions[0], **how)
    assert "".join(map(str, answer)) == "".join(map(str, whole.generate(questions[0], **how)))


def test_taps_and_logits(whole):
    backend, seen, wanted = piped(whole, actors_of(whole, 2), 2), [], []
    backend.run(LONG, backend.sequence(), ALL, lambda name, x: seen.append((name, x)))
    whole.backend.run(LONG, whole.backend.sequence(), ALL, lambda name, x: wanted.append((name, x.copy())))
    assert [name for name, _ in seen] == [name for name, _ in wanted]
    for (_, ours), (_, right) in zip(seen, wanted, strict=True):
        same(ours, right)


def test_progress_counts_each_token_once(whole):
    actors, counts = actors_of(whole, 2), []
    backend = piped(whole, actors, 2)
    actors.started[1][0].dies_after = 1
    backend.run(LONG, backend.sequence(), LAST, progress=counts.append)
    assert sum(counts) == len(LONG)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1, 5, 6])
def test_a_lost_stage_is_made_again_and_the_bits_stay(whole, stage, after):
    """It is lost in the first or in a later group of a prompt, or in a decode step, with others beside it."""
    actors, lines = actors_of(whole, 3), []
    backend = piped(whole, actors, 3, lines.append)
    a, b = (backend.sequence(), backend.sequence()), (whole.backend.sequence(), whole.backend.sequence())
    actors.started[stage][0].dies_after = after
    for ids in (LONG, [5], [6], LONG[:3]):
        for mine, right in zip(a, b, strict=True):
            same(backend.run(ids, mine, LAST), whole.backend.run(ids, right, LAST))
    ours = backend.run_together([Step([1], each, LAST) for each in a])
    for mine, right in zip(ours, whole.backend.run_together([Step([1], each, LAST) for each in b]), strict=True):
        same(mine, right)
    assert [len(actors.started[i]) for i in range(3)] == [1 + (i == stage) for i in range(3)]
    assert len(lines) == 1
    assert lines[0].startswith(f"stage {stage + 1} of 3 was lost and is made again: the actor died")


def test_all_stages_lost_at_once(whole):
    actors = actors_of(whole, 2)
    backend = piped(whole, actors, 2)
    a, b = backend.sequence(), whole.backend.sequence()
    same(backend.run(LONG, a, LAST), whole.backend.run(LONG, b, LAST))
    for started in actors.started.values():
        started[-1].dead = True
    same(backend.run([5], a, LAST), whole.backend.run([5], b, LAST))


def test_losses_without_end(whole):
    actors = actors_of(whole, 2)
    backend = piped(whole, actors, 2)
    sequence, start = backend.sequence(), actors.start

    def dying(i):
        actor = start(i)
        actor.dies_after = 0
        return actor

    backend._calls = pipeline.Calls(dying, *list(vars(actors.calls).values())[1:])
    actors.started[0][0].dead = True
    with pytest.raises(ClusterError, match="stages were lost 5 times in one step"):
        backend.run([1], sequence, LAST)
    assert sequence.length == 0


def test_sequences_that_are_gone_are_dropped_everywhere(whole):
    actors = actors_of(whole, 2)
    backend = piped(whole, actors, 2)
    kept, gone = backend.sequence(), backend.sequence()
    backend.run(LONG, kept, LAST)
    backend.run(LONG, gone, LAST)
    assert backend.missing([]) == 0
    del gone
    gc.collect()
    actors.started[0][0].dead = True  # the second stage does not hear of it with this pass
    backend.run([1], kept, LAST)
    for started in actors.started.values():
        assert [*started[-1].made._stage._held] == [kept.number]


def test_memory_of_the_stages_counts(whole):
    backend = piped(whole, actors_of(whole, 2), 2)
    a = backend.sequence()
    backend.run(LONG, a, LAST)  # two pages
    backend.facts = [type(facts)(facts.machine, 3) for facts in backend.facts]
    backend.context = 128
    b = backend.sequence()
    assert backend.missing([Step([1] * 128, b, LAST)]) == 0
    assert backend.missing([Step([1] * 129, b, LAST)]) == 1
    assert backend.missing([Step([1] * 129, b, LAST), Step([1] * 107, a, LAST)]) == 2


def test_other_files_on_a_machine(whole):
    wrong = {name: size + 1 for name, size in weight_files(whole.path).items()}
    actors = actors_of(whole, 2, files=wrong)
    with pytest.raises(ClusterError, match=r"^machine \d: .*qwq-nano: holds .* here, and .* where the command runs$"):
        piped(whole, actors, 2)
    assert all(started[-1].dead for started in actors.started.values())


def test_another_version_on_a_machine(whole):
    with pytest.raises(ClusterError, match=r"^machine \d: qwq_ref: is .* here, and 0.0.1 where the command runs$"):
        piped(whole, actors_of(whole, 2, version="0.0.1"), 2)


def test_sessions_are_not_saved(whole):
    backend = piped(whole, actors_of(whole, 2), 2)
    with pytest.raises(UsageError, match=r"^session: cannot be saved or loaded"):
        backend.identity()
    with pytest.raises(ValueError, match="do not fit in a context"):
        backend.run([0] * (whole.context + 1), backend.sequence(), LAST)


@pytest.mark.parametrize("most", [1, 2, 4, 9])
@pytest.mark.parametrize("lengths", [[1], [31], [512], [1] * 9, [3, 500, 1, 64], [200, 200, 200]])
def test_groups_hold_all_tokens_once_and_in_order(whole, most, lengths):
    ids = [RNG.integers(0, 300, length).tolist() for length in lengths]
    backend = piped(whole, actors_of(whole, 1), 1)
    sequences = [backend.sequence(LONG[:n]) for n in range(len(ids))]
    rows = [(ALL, LAST, slice(1, None, 3))[n % 3] for n in range(len(ids))]
    steps = [Step(*each) for each in zip(ids, sequences, rows, strict=True)]
    found = groups(ids, steps, most)
    for n, (each, step) in enumerate(zip(ids, steps, strict=True)):
        pieces = [piece for group in found for piece in group if piece.sequence == step.sequence.number]
        assert [token for piece in pieces for token in piece.ids] == each
        assert pieces[0].start == n
        assert all(b.start == a.start + len(a.ids) for a, b in itertools.pairwise(pieces))
        wanted = [p.start + row for p in pieces for row in range(len(p.ids))[p.rows]]
        assert wanted == [n + row for row in range(len(each))[step.rows]]
    for group in found:
        assert len({piece.sequence for piece in group}) == len(group)
    sizes = [sum(len(piece.ids) for piece in group) for group in found]
    assert len(sizes) <= max(1, min(most, sum(sizes) // 32)) + len(lengths)
