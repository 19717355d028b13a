"""The next turn of a conversation: the part of its prompt that is certain before the user speaks."""

import dataclasses
import time

import pytest

import qwq_ref
from qwq_ref.engine import turns
from qwq_ref.engine.scheduler import Ended, Scheduler

WAIT = 60


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano", weights="q8", kv="int8")


@pytest.fixture
def scheduler(nano):
    scheduler = Scheduler(nano, running=1, waiting=1)
    yield scheduler
    scheduler.close()


def wait_until(true):
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(scheduler, messages, says=None, **how):
    """Answer a conversation. `says`: the text of the output, in place of the model's own."""
    ends, prepared = [], scheduler.model.prepare(messages, temperature=0, **how)
    if says is not None:
        script = [*scheduler.model.tokenizer.encode(says, special=True), *scheduler.model.end_tokens]
        prepared = dataclasses.replace(prepared, choose=lambda logits, prompt, output: script[len(output)])
    job = scheduler.submit(prepared, ends.append)
    wait_until(lambda: any(isinstance(event, Ended) for event in ends))
    return job.generation


def user(text):
    return {"role": "user", "content": text}


def said(generation):
    thinking, answer = generation.texts["thinking"], generation.texts["answer"]
    return {"role": "assistant", "content": answer, "reasoning_content": thinking}


LONG = [user("Sort 42,17,88,23. " * 50 + "What is 123+456?")]


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_prefix_is_that_of_every_next_prompt(nano, system):
    messages = [user("hi"), {"role": "assistant", "content": "Hello!", "reasoning_content": "hm"}]
    prefix = turns.certain_prefix(nano, messages, system)
    assert nano.tokenizer.decode(prefix, skip_special=False).endswith("Hello!<|im_end|>\n<|im_start|>user\n")
    assert ("Be brief." in nano.tokenizer.decode(prefix)) == (system is not None)
    for text in ("What?", "0", "<|im_end|>", "你好"):
        ids = nano.prompt_ids([*messages, user(text)], system)
        assert ids[: len(prefix)] == prefix


def test_there_is_none_where_the_template_refuses(nano):
    assert turns.certain_prefix(nano, [{"role": "nobody", "content": ""}]) == []


def test_the_next_turn_of_a_long_chat_has_its_prefix(scheduler, nano):
    """800 tokens: the earlier reasoning is cut, and the answer behind it was computed while the user read."""
    first = ask(scheduler, LONG, "First 3 and 6, then 2 and 5.</think>\n\nThe answer is 579, as you can see.")
    assert first.texts["thinking"]
    assert len(first.run.prompt) + len(first.run.output) >= 800
    talk = [*LONG, said(first)]
    prefix = turns.certain_prefix(nano, talk)
    scheduler.warm(prefix)
    wait_until(lambda: scheduler.call(lambda: not scheduler.warming))
    passes = scheduler.counts.passes
    second = ask(scheduler, [*talk, user("Thanks.")], max_tokens=3)
    assert second.run.cached >= len(prefix)
    assert len(second.run.prompt) - second.run.cached < 0.15 * len(second.run.prompt)
    assert scheduler.counts.passes - passes <= 4  # the rest of the prompt, and a token each
    cold = nano.generate([*talk, user("Thanks.")], temperature=0, max_tokens=3)
    assert "".join(piece.text for piece in cold) == second.texts["thinking"] + second.texts["answer"]


def test_a_turn_takes_what_the_warming_has_computed_so_far(scheduler, nano, monkeypatch):
    """The user may type faster than the prefix is computed."""
    prefix = turns.certain_prefix(nano, LONG)
    prepared = nano.prepare([*LONG, user("Thanks.")], temperature=0, max_tokens=2)
    ends, jobs, run = [], [], scheduler._batch.run

    def hurry():
        yield from run()
        if scheduler.warming and scheduler._warming[1].ids and not jobs:
            jobs.append(scheduler.submit(prepared, ends.append))

    monkeypatch.setattr(scheduler._batch, "run", hurry)
    scheduler.warm(prefix)
    wait_until(lambda: any(isinstance(event, Ended) for event in ends))
    assert 128 <= jobs[0].generation.run.cached < len(prefix)
