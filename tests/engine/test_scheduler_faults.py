"""Faults in a scheduler: each ends one job, or those of one pass, and the thread goes on."""

import threading
import time

import pytest

import qwq_ref
from qwq_ref.engine.scheduler import Scheduler
from qwq_ref.errors import BusyError, MemoryLimitError
from tests.engine.test_scheduler import Listener, answer_alone, answer_of, ask, choosing


class PanicError(BaseException):
    """As the libraries in Rust raise it: no Exception."""


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano", weights="q8", kv="int8")


@pytest.fixture
def scheduler(nano):
    scheduler = Scheduler(nano, running=4, waiting=8)
    yield scheduler
    threading.Thread(target=scheduler.close, daemon=True).start()
    scheduler._thread.join(20)
    assert not scheduler._thread.is_alive()


def still_works(scheduler):
    job, listener = ask(scheduler, "What is 12+34?", seed=1, max_tokens=5)
    assert listener.wait().problem is None
    assert answer_of(job) == answer_alone(scheduler.model, "What is 12+34?", seed=1, max_tokens=5)


def panics(*_):
    raise PanicError("internal error: entered unreachable code")


def test_a_panic_of_a_library_ends_one_job(nano, scheduler):
    listener = Listener()
    scheduler.submit(choosing(nano, panics), listener)
    assert isinstance(listener.wait().problem, RuntimeError)
    still_works(scheduler)
    assert scheduler.counts.failed == 1


@pytest.mark.parametrize("problem", [MemoryError, OSError, PanicError])
def test_a_pass_that_fails_ends_its_jobs(nano, scheduler, monkeypatch, problem):
    run, go = type(nano.backend).run_together, threading.Event()

    def fails(self, steps, progress=None):
        if go.is_set():
            return run(self, steps, progress)
        time.sleep(0.01)
        raise problem("the disk is gone")

    monkeypatch.setattr(type(nano.backend), "run_together", fails)
    jobs = [ask(scheduler, f"What is {n}+1?", seed=1, max_tokens=5) for n in range(3)]
    for _, listener in jobs:
        assert listener.wait().problem is not None
    assert scheduler.counts.running == 0
    go.set()
    still_works(scheduler)


@pytest.mark.parametrize("name", ["begin", "common"])
def test_a_fault_before_the_first_pass_ends_one_job(nano, scheduler, monkeypatch, name):
    monkeypatch.setattr(scheduler._prefixes, name, lambda *_: 1 // 0)
    _, listener = ask(scheduler, "x", max_tokens=2)
    assert isinstance(listener.wait().problem, ZeroDivisionError)
    monkeypatch.undo()
    still_works(scheduler)


def test_a_fault_in_the_text_of_an_answer_ends_one_job(nano, scheduler, monkeypatch):
    prepared = nano.prepare("x", max_tokens=5)
    monkeypatch.setattr(prepared.transcript, "feed", lambda identity: 1 // 0)
    listener = Listener()
    scheduler.submit(prepared, listener)
    assert isinstance(listener.wait().problem, ZeroDivisionError)
    still_works(scheduler)
    prepared = nano.prepare("x", max_tokens=5)
    monkeypatch.setattr(prepared.transcript, "finish", lambda: 1 // 0)
    listener = Listener()
    scheduler.submit(prepared, listener)
    assert isinstance(listener.wait().problem, ZeroDivisionError)
    assert scheduler.counts.failed == 2
    still_works(scheduler)


def test_work_that_panics_raises_where_it_was_called(scheduler):
    with pytest.raises(PanicError):
        scheduler.call(panics)
    still_works(scheduler)


@pytest.mark.parametrize("ids", [[1] * 5000, [10**6, 1, 2] * 20, [-3] * 50, []])
def test_a_prefix_that_cannot_be_warmed_is_left_out(scheduler, ids):
    scheduler.warm(ids)
    still_works(scheduler)
    scheduler.warm(ids)
    time.sleep(0.05)
    still_works(scheduler)


def test_prompts_that_are_scored_wait_for_memory(nano):
    """Sessions that are kept give theirs up first. Where nothing is left, the caller may try again."""
    model = qwq_ref.load("qwq-nano", weights="q8", kv="int8", context=512)
    scheduler = Scheduler(model, memory=0)
    try:
        _, listener = ask(scheduler, "x" * 300, seed=1, max_tokens=2)
        listener.wait()
        assert scheduler.counts.kept == 1
        sequence = model.backend.sequence()
        step = model.session().step([1] * 300)
        step = type(step)(step.ids, sequence, step.rows)
        scheduler.call(lambda: scheduler.make_room(step))
        assert scheduler.counts.kept == 0
        scheduler.call(lambda: model.backend.run(step.ids, sequence, step.rows))
        other = type(step)(step.ids, model.backend.sequence(), step.rows)
        with pytest.raises(BusyError, match="memory"):
            scheduler.call(lambda: scheduler.make_room(other))
        with pytest.raises(MemoryLimitError):
            scheduler.call(lambda: model.backend.run(other.ids, other.sequence, other.rows))
    finally:
        scheduler.close()


def test_an_error_that_lives_holds_no_memory():
    """The caller may keep it for long. Its frames would hold the sessions of this answer, and of others."""
    nano = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
    scheduler = Scheduler(nano)
    listeners = [Listener() for _ in range(6)]
    for number, listener in enumerate(listeners):
        _, other = ask(scheduler, "x" * 200 + str(number), seed=1, max_tokens=20)
        fails = choosing(nano, lambda logits, prompt, output: 100 if len(output) < 9 else 1 // 0, loop_guard=0)
        scheduler.submit(fails, listener)
        listener.wait()
        other.wait()
    scheduler.call(lambda: [None for _ in iter(scheduler._prefixes.drop_oldest, False)])
    scheduler.call(lambda: None)
    scheduler.close()
    assert all(isinstance(listener.events[-1].problem, ZeroDivisionError) for listener in listeners)
    assert nano.backend.pool.used == 0
