"""Sequences that share passes over the weights get the bits that each gets alone, in every backend."""

import numpy as np
import pytest

from qwq_ref.engine import faults
from qwq_ref.engine.backends import ALL, LAST, Step
from qwq_ref.engine.decode.together import together
from qwq_ref.engine.session import Request
from qwq_ref.errors import NonFiniteError, UsageError

IDS = [[5, 9, 1, 200, 7, 7, 30, 12], [8], [3, 4, 5], [1, 2]]
ROWS = [ALL, LAST, slice(1, 3), slice(0, 0)]


def test_steps_get_their_own_bits(random_model):
    backend = random_model.backend
    alone, shared = ([backend.sequence() for _ in IDS] for _ in range(2))
    for _ in range(2):  # the second time, behind what they hold
        wanted = [backend.run(ids, each, rows) for ids, each, rows in zip(IDS, alone, ROWS, strict=True)]
        found = backend.run_together([Step(*each) for each in zip(IDS, shared, ROWS, strict=True)])
        assert [each.length for each in shared] == [each.length for each in alone]
        for ours, true in zip(found, wanted, strict=True):
            assert ours.shape == true.shape
            assert np.array_equal(ours, true)


def test_progress_counts_the_tokens_of_all(random_model):
    backend, counts = random_model.backend, []
    backend.run_together([Step(ids, backend.sequence(), LAST) for ids in IDS], counts.append)
    assert sum(counts) == pytest.approx(sum(map(len, IDS)))


def test_a_refusal_changes_no_sequence(random_model):
    backend = random_model.backend
    first, second = backend.sequence(), backend.sequence()
    backend.run([1, 2], first, LAST)
    for steps, words in [
        ([Step([3], first, LAST), Step([4], first, LAST)], "of different sequences"),
        ([Step([3], first, LAST), Step([-1], second, LAST)], "token_ids must be in"),
        ([Step([3], first, LAST), Step([1] * (backend.context + 1), second, LAST)], "do not fit"),
    ]:
        with pytest.raises(ValueError, match=words):
            backend.run_together(steps)
        assert (first.length, second.length) == (2, 0)


def test_an_error_is_that_of_the_step_at_fault(random_model, monkeypatch):
    backend = random_model.backend
    sequences, run = [backend.sequence() for _ in range(3)], type(backend).run

    def broken(self, ids, sequence, rows, tap=None, progress=None):
        found = run(self, ids, sequence, rows, tap, progress)
        return found * np.float32(np.nan) if ids == [13] else found

    def broken_together(self, steps, progress=None):
        return [self.run(step.ids, step.sequence, step.rows) for step in steps]

    monkeypatch.setattr(type(backend), "run", broken)
    monkeypatch.setattr(type(backend), "run_together", broken_together)
    requests = [Request(Step([i], each, LAST), f"step {i}") for i, each in enumerate(sequences, 12)]
    with pytest.raises(NonFiniteError, match="the model: step 13: "):
        faults.run_finite_together(backend, requests, "the model")
    assert [each.length for each in sequences] == [0, 0, 0]


QUESTIONS = ["What is 12+34?", "hello", "Sort 42,17,88,23.", "What is 7*8?", "Which is larger, 512 or 498?"]


@pytest.mark.parametrize("parallel", [1, 2, 4, 9])
@pytest.mark.parametrize("how", [{"temperature": 0}, {"seed": 3, "temperature": 1.1}])
def test_answers_are_those_of_each_alone(random_model, parallel, how):
    settings = how | {"max_tokens": 12, "seed": 3}
    alone = []
    for question in QUESTIONS:
        generation = random_model.generate(question, **settings)
        text = "".join(map(str, generation))
        assert text == generation.texts["thinking"] + generation.texts["answer"]
        alone.append((generation.run.output, generation.texts, generation.run.finish_reason, generation.ending))
    found = dict(random_model.generate_all(QUESTIONS, parallel=parallel, **settings))
    assert sorted(found) == [*range(len(QUESTIONS))]
    for number, each in found.items():
        assert (each.run.output, each.texts, each.run.finish_reason, each.ending) == alone[number]
        assert each.run.prompt_seconds > 0


def test_passes_are_shared(random_model, monkeypatch):
    calls, run = [], type(random_model.backend).run_together

    def watched(self, steps, progress=None):
        calls.append(len(steps))
        return run(self, steps, progress)

    monkeypatch.setattr(type(random_model.backend), "run_together", watched)
    for number, each in random_model.generate_all(QUESTIONS, parallel=3, max_tokens=4, temperature=0):
        assert each.run.finish_reason == "length", number
    assert calls == [3, 3, 3, 3, 2, 2, 2, 2]


def test_a_bad_prompt_is_found_before_any_work(random_model):
    with pytest.raises(UsageError, match=r"prompt 1: of .* tokens and one more does not fit"):
        random_model.generate_all(["hi", "hi " * 5000])
    with pytest.raises(UsageError, match="prompts: must be a list of prompts, not a text"):
        random_model.generate_all("hi")
    with pytest.raises(UsageError, match="parallel: must be at least 1, got 0"):
        random_model.generate_all(["hi"], parallel=0)
    with pytest.raises(UsageError, match=r"parallel: must be an integer, got 1\.5"):
        random_model.generate_all(["hi"], parallel=1.5)


def test_no_works_need_no_pass(random_model):
    assert list(together([], random_model.backend, 4)) == []
    assert list(random_model.generate_all([])) == []
