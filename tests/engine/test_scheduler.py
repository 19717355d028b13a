"""A scheduler answers many callers at once: each gets the bits that it gets alone."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref.engine.decode.batch import Batch
from qwq_ref.engine.scheduler import Ended, Progress, Scheduler
from qwq_ref.errors import BusyError

WAIT = 60


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano", weights="q8", kv="int8")


@pytest.fixture
def scheduler(nano):
    scheduler = Scheduler(nano, running=16, waiting=64)
    yield scheduler
    scheduler.close()


class Listener:
    """The events of one job."""

    def __init__(self):
        self.events, self.ended = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Ended):
            self.ended.set()

    def wait(self):
        assert self.ended.wait(WAIT)
        return self.events[-1]


def ask(scheduler, prompt, **how):
    listener = Listener()
    return scheduler.submit(scheduler.model.prepare(prompt, **how), listener), listener


def choosing(model, choose, **how):
    """A prompt whose next tokens are chosen by a function."""
    return dataclasses.replace(model.prepare("x", **how), choose=choose)


def endless(model):
    return choosing(model, lambda logits, prompt, output: 100, loop_guard=0, max_tokens=900)


def answer_alone(model, prompt, **how):
    generation = model.generate(prompt, **how)
    for _ in generation:
        pass
    return generation.run.output, generation.texts, generation.run.finish_reason


def answer_of(job):
    return job.generation.run.output, job.generation.texts, job.generation.run.finish_reason


CASES = st.lists(
    st.tuples(
        st.sampled_from(["What is 12+34?", "What is 12+35?", "Sort 42,17,88,23.", "hello", "1" * 90, "x" * 300]),
        st.sampled_from([0.0, 0.8, 1.5]),
        st.integers(0, 5),
        st.integers(1, 40),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=12, deadline=None)
@given(CASES)
def test_an_answer_has_the_bits_that_it_has_alone(nano, cases):
    scheduler = Scheduler(nano, running=16)
    try:
        jobs = []
        for prompt, temperature, seed, most, delay in cases:
            how = {"temperature": temperature, "seed": seed, "max_tokens": most}
            jobs.append((*ask(scheduler, prompt, **how), prompt, how))
            time.sleep(delay / 1000)
        for job, listener, prompt, how in jobs:
            assert listener.wait().problem is None
            assert answer_of(job) == answer_alone(nano, prompt, **how)
            assert "".join(str(e) for e in listener.events[:-1] if not isinstance(e, Progress)) == "".join(
                job.generation.texts.values()
            )
    finally:
        scheduler.close()


def test_answers_do_not_change_where_memory_is_short(nano):
    """Four pages hold one context of 512 positions, and part of others: works are put aside and brought back."""
    model = qwq_ref.load("qwq-nano", weights="q8", kv="int8", context=512)
    scheduler = Scheduler(model, memory=0)
    pool = model.backend.pool
    assert pool.limit == 4
    try:
        prompts = ["x" * n for n in (100, 200, 300, 330, 20, 250)]
        how = [{"seed": i, "temperature": 1.2, "max_tokens": 90, "loop_guard": 0} for i in range(len(prompts))]
        jobs = [ask(scheduler, prompt, **each) for prompt, each in zip(prompts, how, strict=True)]
        for (job, listener), prompt, each in zip(jobs, prompts, how, strict=True):
            assert listener.wait().problem is None
            assert answer_of(job) == answer_alone(nano, prompt, **each)
        assert pool.used <= 4
    finally:
        scheduler.close()


def test_a_prefix_is_shared_and_copied_when_written(nano):
    backend = nano.backend
    ids = np.random.default_rng(0).integers(0, 500, 300).tolist()
    session, pool = nano.session(), backend.pool
    session.extend(ids)
    used = pool.used
    fork = session.fork(290)
    assert pool.used == used
    fork.extend([7, 8])
    assert pool.used == used + 1, "the page of positions 256 to 383 was copied"
    session.rollback(100)
    session.extend([1, 2, 3])  # in a page that the fork uses
    whole = nano.session()
    whole.extend([*ids[:290], 7, 8])
    assert np.array_equal(fork.next_logits(), whole.next_logits())
    again = nano.session()
    again.extend([*ids[:100], 1, 2, 3])
    assert np.array_equal(session.next_logits(), again.next_logits())
    del session, fork, whole, again
    assert pool.used == used - 3


def test_a_later_prompt_begins_with_what_is_there(nano, scheduler):
    first, one = ask(scheduler, "What is 12+34?", seed=1, max_tokens=30)
    one.wait()
    second, two = ask(scheduler, "What is 12+34?", seed=1, max_tokens=30)
    two.wait()
    assert second.generation.run.cached == len(second.prompt) - 1
    assert answer_of(second) == answer_of(first)
    counts = scheduler.counts
    assert (counts.answered, counts.running, counts.waiting) == (2, 0, 0)
    assert counts.cached_tokens == len(second.prompt) - 1


def test_prompts_with_a_common_beginning_compute_it_once(nano, scheduler):
    text = "y" * 400
    jobs = [ask(scheduler, text + str(i), seed=i, max_tokens=5) for i in range(8)]
    for i, (job, listener) in enumerate(jobs):
        listener.wait()
        assert answer_of(job) == answer_alone(nano, text + str(i), seed=i, max_tokens=5)
    assert scheduler.counts.prompt_tokens < 2 * len(jobs[0][0].prompt)


def test_a_cancelled_job_ends_at_once_and_leaves_no_page(nano):
    scheduler = Scheduler(nano, running=2)
    pool, started = nano.backend.pool, threading.Event()

    class Waiter(Listener):
        def __call__(self, event):
            super().__call__(event)
            started.set()

    try:
        listeners = [Waiter() for _ in range(3)]
        jobs = [scheduler.submit(endless(nano), listener) for listener in listeners]
        assert started.wait(WAIT)
        for job in reversed(jobs):
            scheduler.cancel(job)
        for job, listener in zip(jobs, listeners, strict=True):
            assert listener.wait().problem is None
            assert job.generation.run.finish_reason == "cancelled"
            assert sum(isinstance(event, Ended) for event in listener.events) == 1
        assert scheduler.counts.cancelled == 3
    finally:
        scheduler.close()
    while scheduler._prefixes.drop_oldest():
        pass
    del jobs, listeners, scheduler, job, listener
    assert pool.used == 0


def test_too_many_jobs_are_refused(nano):
    scheduler = Scheduler(nano, running=1, waiting=2)
    try:
        listeners = [Listener() for _ in range(3)]
        with pytest.raises(BusyError, match="server: is busy: 2 prompts wait already") as caught:
            scheduler.call(lambda: [scheduler.submit(endless(nano), each) for each in listeners])
        assert caught.value.retry_after >= 1
        assert scheduler.counts.refused == 1
    finally:
        scheduler.close()
    assert all(listener.wait().problem is None for listener in listeners[:2])
    with pytest.raises(BusyError, match="is shutting down"):
        scheduler.submit(nano.prepare("x"), Listener())


def test_a_job_that_fails_leaves_the_others_alone(nano, scheduler, monkeypatch):
    good = "What is 12+34?"
    wanted = answer_alone(nano, good, seed=1)
    listener = Listener()
    scheduler.submit(choosing(nano, lambda logits, prompt, output: 1 // 0), listener)
    job, other = ask(scheduler, good, seed=1)
    assert isinstance(listener.wait().problem, ZeroDivisionError)
    assert other.wait().problem is None
    assert answer_of(job) == wanted


def test_a_warmed_prefix_waits_for_nobody(nano, scheduler):
    ids = nano.prompt_ids("z" * 300)
    scheduler.warm(ids[:-5])
    job, listener = ask(scheduler, "z" * 300, seed=1, max_tokens=5)
    listener.wait()
    assert answer_of(job) == answer_alone(nano, "z" * 300, seed=1, max_tokens=5)
    scheduler.warm(ids[:-2])
    for _ in range(500):
        if scheduler.counts.kept and not len(scheduler._batch):
            break
        time.sleep(0.01)
    later, again = ask(scheduler, "z" * 300 + "!", seed=1, max_tokens=5)
    again.wait()
    assert later.generation.run.cached >= 300


def test_closing_lets_jobs_end(nano):
    scheduler = Scheduler(nano)
    job, listener = ask(scheduler, "What is 12+34?", seed=1)
    scheduler.close(WAIT)
    assert listener.wait().problem is None
    assert answer_of(job) == answer_alone(nano, "What is 12+34?", seed=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_program_leaves_nobody_waiting(nano, monkeypatch):
    scheduler = Scheduler(nano, running=1)
    monkeypatch.setattr(scheduler._batch, "run", lambda: 1 // 0)
    monkeypatch.setattr(scheduler._batch, "clear", lambda: 1 // 0)  # without this fault, others would go on
    listeners = [Listener() for _ in range(3)]
    scheduler.call(lambda: [scheduler.submit(endless(nano), listener) for listener in listeners])
    assert all(isinstance(listener.wait().problem, ZeroDivisionError) for listener in listeners)
    with pytest.raises(BusyError):
        scheduler.submit(endless(nano), Listener())
    scheduler.close()


def test_a_piece_of_what_was_put_aside_is_as_long_as_its_request(nano):
    """Its tokens are then the first of the whole session, and not those of the request."""
    session, ids = nano.session(), np.random.default_rng(1).integers(0, 500, 40).tolist()
    session.extend(ids[:20])
    batch = Batch(nano.backend, live=False)
    batch.add(0, session.asking(ids[20:]))
    assert list(batch.items()) == []
    batch._works[0].put_aside()
    batch._works[0].aside = False
    batch._shares = lambda works: {0: 20}
    for _ in range(2):
        assert list(batch.run()) == []
    assert list(batch.items()) == [(0, None)]
    whole = nano.session()
    whole.extend(ids)
    assert session.ids == ids
    assert np.array_equal(session.next_logits(), whole.next_logits())
