"""A scheduler in any order of calls, with memory for one context: each job ends once, and leaves nothing behind."""

import threading
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import qwq_ref
from qwq_ref.engine.scheduler import Ended, Scheduler
from qwq_ref.errors import BusyError
from tests.engine.test_scheduler import Listener, answer_alone, answer_of, choosing

PROMPTS = ["x" * n for n in (1, 30, 100, 200, 300, 330)] + ["x" * 200 + "y" * 60, "y" * 150, "y" * 150 + "x" * 90]
_models, _alone = {}, {}


def small():
    """A model with pages for one context of 512 positions, and the answers that it gives alone."""
    if not _models:
        _models["small"] = qwq_ref.load("qwq-nano", weights="q8", kv="int8", context=512)
        _models["alone"] = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
    return _models["small"]


def alone(prompt, **how):
    key = prompt, *how.values()
    if key not in _alone:
        _alone[key] = answer_alone(_models["alone"], prompt, **how)
    return _alone[key]


class SlowListener(Listener):
    """A caller that takes its time, and then fails."""

    def __call__(self, event):
        super().__call__(event)
        time.sleep(0.0005)
        raise ValueError


class Machine(RuleBasedStateMachine):
    @initialize(running=st.integers(1, 6))
    def begin(self, running):
        self.model = small()
        self.scheduler = Scheduler(self.model, running=running, waiting=8, memory=0)
        assert self.model.backend.pool.limit == 4
        self.good, self.failing, self.cancelled, self.calls = [], [], set(), 0

    def submit(self, prepared, listener):
        try:
            return self.scheduler.submit(prepared, listener)
        except BusyError:
            return None

    @rule(prompt=st.sampled_from(PROMPTS), seed=st.integers(0, 2), most=st.sampled_from([1, 9, 60]), slow=st.booleans())
    def ask(self, prompt, seed, most, slow):
        how = {"seed": seed, "temperature": 1.2, "max_tokens": most, "loop_guard": 0}
        listener = SlowListener() if slow else Listener()
        if job := self.submit(self.model.prepare(prompt, **how), listener):
            self.good.append((job, listener, prompt, how))

    @rule(after=st.integers(0, 5))
    def ask_what_fails(self, after):
        def choose(logits, prompt, output):
            return 100 if len(output) < after else 1 // 0

        listener = Listener()
        if job := self.submit(choosing(self.model, choose, max_tokens=9, loop_guard=0), listener):
            self.failing.append((job, listener))

    @precondition(lambda self: self.good)
    @rule(data=st.data(), again=st.booleans())
    def cancel(self, data, again):
        job = data.draw(st.sampled_from(self.good))[0]
        self.scheduler.cancel(job)
        self.cancelled.add(job.number)
        if again:
            self.scheduler.cancel(job)

    @rule(prompt=st.sampled_from(PROMPTS))
    def warm(self, prompt):
        self.scheduler.warm(self.model.prompt_ids(prompt))

    @rule(fails=st.booleans())
    def call(self, fails):
        if fails:
            with pytest.raises(ZeroDivisionError):
                self.scheduler.call(lambda: 1 // 0)
        else:
            assert self.scheduler.call(lambda: 7) == 7

    @rule(milliseconds=st.integers(0, 20))
    def wait(self, milliseconds):
        time.sleep(milliseconds / 1000)
        counts = self.scheduler.counts
        assert counts.running <= self.scheduler._most
        assert self.model.backend.pool.used <= 4

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        closing = threading.Thread(target=self.scheduler.close, args=(60,), daemon=True)
        closing.start()
        closing.join(90)
        assert not closing.is_alive(), "the scheduler does not close"
        for job, listener, prompt, how in self.good:
            ended = listener.wait()
            assert sum(isinstance(event, Ended) for event in listener.events) == 1
            assert ended.problem is None
            found, wanted = answer_of(job), alone(prompt, **how)
            if found[2] == "cancelled":
                assert job.number in self.cancelled
                assert wanted[0][: len(found[0])] == found[0]
            else:
                assert found == wanted
        for _, listener in self.failing:
            assert isinstance(listener.wait().problem, ZeroDivisionError)
            assert sum(isinstance(event, Ended) for event in listener.events) == 1
        counts = self.scheduler.counts
        assert counts.running == counts.waiting == 0
        assert counts.answered + counts.cancelled + counts.failed == len(self.good) + len(self.failing)
        assert counts.failed == len(self.failing)
        assert not len(self.scheduler._batch) or self.scheduler._warming is not None
        pool, name = self.model.backend.pool, self.scheduler._thread.name
        self.good, self.failing, self.scheduler = [], [], None
        assert not any(thread.name == name for thread in threading.enumerate())
        _ = job = listener = closing = None
        assert pool.used == 0


def test_any_order_of_calls():
    how = settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[*HealthCheck])
    run_state_machine_as_test(Machine, settings=how)


@pytest.mark.long
def test_any_order_of_calls_for_long():
    how = settings(max_examples=400, stateful_step_count=60, deadline=None, suppress_health_check=[*HealthCheck])
    run_state_machine_as_test(Machine, settings=how)
