"""A scheduler answers many callers at once: each gets the bits that it gets alone."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref.engine.scheduler import Ended, Progress, Scheduler

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
