"""The settings of one generation, in a whole model: stop strings, log-probabilities, the loop guard, the effort."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qwq_ref
from qwq_ref.engine.loops import DIFFERENT, PLAIN, TIMES, Loop
from qwq_ref.engine.scheduler import Ended, Scheduler
from qwq_ref.engine.settings import EFFORTS, Settings
from qwq_ref.errors import UsageError
from tests.support.scripts import Given, model_that_says, read


def answering(small, text, last=None, context=4096, prompt="<think>\n"):
    """A model that says a text, which may hold markers."""
    ids = small.encode(prompt, special=True)
    return model_that_says(small, small.encode(text, special=True), Given(ids), last, context)


def ask(model, **settings):
    generation = model.generate("what?", temperature=0, **settings)
    return generation, *read(generation)


# --- stop strings ---------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_the_answer_at_its_last_token(small):
    said = small.encode("so</think>The answer is 42. Yes, and more.", special=True)
    generation, thinking, answer = ask(answering(small, "so</think>The answer is 42. Yes, and more."), stop="Yes,")
    assert (thinking, answer) == ("so", "The answer is 42. ")
    run = generation.run
    assert (run.finish_reason, run.stop_string, generation.ending) == ("stop", "Yes,", None)
    assert run.output == said[: len(run.output)]
    assert small.decode(run.output).count("Yes,") == 1
    assert "Yes," not in small.decode(run.output[:-1])  # no token more than it takes


def test_the_reasoning_may_hold_a_stop_string(small):
    generation, thinking, answer = ask(answering(small, "one\n\ntwo</think>a\n\nb"), stop=["\n\n", "two"])
    assert (thinking, answer, generation.run.stop_string) == ("one\n\ntwo", "a", "\n\n")


def test_text_that_was_held_back_is_given_out_at_the_end(small):
    generation, _, answer = ask(answering(small, "so</think>It is ST"), stop=["STOP"])
    assert (answer, generation.run.finish_reason, generation.run.stop_string) == ("It is ST", "stop", None)
    generation, thinking, answer = ask(answering(small, "so</think>S<think>well</think>TOP"), stop=["STOP"])
    assert (thinking, answer) == ("sowell", "STOP")  # a stop string does not reach across reasoning


def test_a_stop_string_at_once_is_no_missing_answer(small):
    generation, _, answer = ask(answering(small, "so</think>STOP"), stop=["STOP"])
    assert (answer, generation.run.finish_reason, generation.ending) == ("", "stop", None)


def test_a_stop_string_comes_before_a_limit_at_the_same_token(small):
    said = small.encode("so</think>42.", special=True)
    generation, _, answer = ask(answering(small, "so</think>42. More"), stop=["."], max_tokens=len(said))
    assert (answer, generation.run.finish_reason) == ("42", "stop")


texts = st.text("ab .\n", max_size=20)


@given(texts, st.lists(st.text("ab .\n", min_size=1, max_size=4), max_size=3))
def test_any_answer_is_cut_as_the_whole_text_would_be(small, text, stops):
    generation, _, answer = ask(answering(small, text, prompt="x"), stop=stops)
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    assert answer == (text[: min(ends)[1]] if ends else text)
    assert (generation.run.stop_string is not None) == bool(ends)


def test_side_by_side_is_as_alone(random_model):
    how = {"temperature": 0.9, "seed": 4, "max_tokens": 30, "logprobs": 1, "raw": True}
    prompts = ["hello", "what?", "1 + 2"]
    texts = [read(random_model.generate(text, **how))[1] for text in prompts]
    stops = [text[len(text) // 2 :][:2] for text in texts]
    alone = []
    for text in prompts:
        generation = random_model.generate(text, stop=stops, **how)
        list(generation)
        alone.append((generation.texts, generation.run.output, generation.run.stop_string, generation.run.logprobs))
    together = dict(random_model.generate_all(prompts, stop=stops, **how))
    for number, each in together.items():
        assert (each.texts, each.run.output, each.run.stop_string, each.run.logprobs) == alone[number]
        assert each.run.stop_string in stops
        assert len(each.run.output) < 30


def test_a_scheduler_stops_at_the_same_token():
    nano = qwq_ref.load("qwq-nano")
    settings = Settings.checked(temperature=0, stop=["boxed"], logprobs=2)
    alone = nano.generate("What is 12+34?", temperature=0, stop=["boxed"], logprobs=2)
    _, answer = read(alone)
    assert answer.endswith("\\")
    scheduler, ended = Scheduler(nano), threading.Event()
    try:
        job = scheduler.submit(
            nano.prepare("What is 12+34?", settings), lambda event: ended.set() if isinstance(event, Ended) else None
        )
        assert ended.wait(60)
    finally:
        scheduler.close()
    assert job.generation.texts == alone.texts
    for name in ("output", "finish_reason", "stop_string", "logprobs"):
        assert getattr(job.generation.run, name) == getattr(alone.run, name)


def test_settings_are_given_in_one_way(random_model):
    with pytest.raises(TypeError, match="settings are given, and seed, too"):
        random_model.prepare("hello", Settings(), seed=1)


# --- log-probabilities ----------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_model_before_sampling(random_model):
    how = {"temperature": 0.7, "top_k": 3, "seed": 5, "max_tokens": 12, "logit_bias": {7: 2.0}}
    generation = random_model.generate("hello", logprobs=20, **how)
    list(generation)
    run = generation.run
    assert [entry.id for entry in run.logprobs] == run.output
    rows = random_model.logits(run.prompt + run.output)[len(run.prompt) - 1 : -1, : random_model.tokenizer.size]
    for row, entry in zip(rows.astype(np.float64), run.logprobs, strict=True):
        assert not random_model.tokenizer.holes
        wanted = row - np.log(np.sum(np.exp(row)))
        order = np.argsort(-row, kind="stable")[:20]
        assert [identity for identity, _ in entry.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in entry.top], wanted[order], atol=2e-5)
        np.testing.assert_allclose(entry.logprob, wanted[entry.id], atol=2e-5)


def test_without_them_nothing_is_noted_and_nothing_changes(random_model):
    how = {"seed": 5, "max_tokens": 8, "temperature": 1.0}
    plain, noted, none = (random_model.generate("hello", **how, logprobs=n) for n in (None, 2, 0))
    for each in (plain, noted, none):
        list(each)
    assert plain.run.logprobs is None
    assert plain.run.output == noted.run.output == none.run.output
    assert [len(entry.top) for entry in noted.run.logprobs] == [2] * 8
    assert [entry.top for entry in none.run.logprobs] == [()] * 8
    assert [e.logprob for e in noted.run.logprobs] == [e.logprob for e in none.run.logprobs]


def test_tokens_that_were_appended_have_none(small):
    generation, _, _ = ask(answering(small, "one two three</think>a", prompt="<think>\n"), think_budget=2, logprobs=1)
    run = generation.run
    assert [entry.id for entry in run.logprobs] == run.output
    forced = [n for n, entry in enumerate(run.logprobs) if entry.logprob is None]
    assert forced == list(range(2, 2 + len(forced)))
    assert len(forced) > 5
    cut, _, _ = ask(answering(small, "one two three"), think_budget=2, logprobs=1, max_tokens=5)
    assert [entry.id for entry in cut.run.logprobs] == cut.run.output


# --- the loop guard -------------------------------------------------------------------------------------------------


def test_an_output_that_repeats_itself_is_ended_and_announced(small):
    unit = list(range(DIFFERENT + 4))
    model = model_that_says(small, unit * 20, Given([1]))
    generation, _, _ = ask(model)
    run = generation.run
    assert run.output == unit * TIMES
    assert (run.finish_reason, run.loop) == ("loop", Loop(len(unit), TIMES))
    assert generation.ending == (
        "the output repeats itself: the last 20 tokens came 8 times; --loop-guard off lets it go on"
    )
    assert ask(model, loop_guard=3)[0].run.output == unit * 3
    free = ask(model, loop_guard=0)[0]
    assert (free.run.output, free.run.finish_reason, free.run.loop) == (unit * 20, "stop", None)


def test_one_token_without_end(small):
    model = model_that_says(small, [], Given([1]), last=65)
    generation, _, _ = ask(model)
    assert generation.run.output == [65] * PLAIN
    assert "the last token came 1024 times" in generation.ending


# --- the effort -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "context", "wanted"),
    [
        ("none", 10_000, 0),
        ("minimal", 10_000, 0),
        ("low", 40_000, 1024),
        ("low", 1000, 250),
        ("medium", 40_000, 4096),
        ("medium", 1000, 500),
        ("high", 1000, None),
    ],
)
def test_an_effort_is_a_budget_that_leaves_room(effort, context, wanted):
    assert Settings.checked(reasoning_effort=effort).budget(context) == wanted


def test_an_effort_closes_the_reasoning(small):
    model = answering(small, "a b c d e f g h " * 40, context=202)
    sentence = len(small.encode("\n\nI have thought long enough; here is the answer.\n"))
    for settings, most in (({}, 50), ({"max_tokens": 150}, 37)):
        generation, _, _ = ask(model, reasoning_effort="low", **settings)
        assert generation.run.output.index(small.think_end) == most + sentence
    generation, thinking, answer = ask(model, reasoning_effort="none", max_tokens=5)
    assert (thinking, bool(answer)) == ("", True)


def test_a_model_that_cannot_close_its_reasoning_has_no_effort(random_model, monkeypatch):
    monkeypatch.setattr(type(random_model.tokenizer), "think_end", None, raising=False)
    monkeypatch.setattr(random_model.tokenizer, "think_end", None)
    with pytest.raises(UsageError, match=r"^reasoning_effort: this model has no </think> token"):
        random_model.generate("hello", reasoning_effort="low")
    random_model.generate("hello", reasoning_effort="high")


# --- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"stop": ""}, "stop: must be texts of 1 to 1000 characters, got 0"),
        ({"stop": ["a", ""]}, "stop: must be texts of 1 to 1000 characters, got 0"),
        ({"stop": ["a" * 1001]}, "stop: must be texts of 1 to 1000 characters, got 1001"),
        ({"stop": ["a"] * 17}, "stop: must have at most 16 texts, got 17"),
        ({"stop": 5}, "stop: must be a text or a list of texts, got 5"),
        ({"stop": [b"a"]}, r"stop: must be a text or a list of texts, got \[b'a'\]"),
        ({"logprobs": 21}, "logprobs: must be 0 to 20, got 21"),
        ({"logprobs": -1}, "logprobs: must be 0 to 20, got -1"),
        ({"logprobs": True}, "logprobs: must be an integer, got True"),
        ({"loop_guard": 1}, "loop_guard: must be at least 2, or 0 to turn it off, got 1"),
        ({"loop_guard": "off"}, "loop_guard: must be an integer, got 'off'"),
        ({"reasoning_effort": "hgh"}, "reasoning_effort: must be one of none, minimal, low, medium, high, got 'hgh'"),
        ({"reasoning_effort": 3}, "reasoning_effort: must be one of none, minimal, low, medium, high, got 3"),
        ({"reasoning_effort": "low", "think_budget": 5}, "reasoning_effort: cannot be combined with a think budget"),
        ({"logit_bias": {100_000: 1}}, "logit_bias: must name ids of tokens, below [0-9]+, got 100000"),
        ({"typical_p": 0}, "typical_p: must be above 0 and at most 1, got 0"),
    ],
)
def test_wrong_settings_are_refused_before_any_computation(random_model, monkeypatch, settings, problem):
    monkeypatch.setattr(random_model, "backend", None)
    with pytest.raises(UsageError, match=f"^{problem}"):
        random_model.generate("hello", **settings)


def test_a_bias_that_leaves_nothing_is_refused(random_model):
    size = random_model.tokenizer.size
    with pytest.raises(UsageError, match=r"^logit_bias: excludes every token$"):
        random_model.generate("hello", logit_bias=dict.fromkeys(range(size), -np.inf))
    bias = dict.fromkeys(range(size - 1), -np.inf)
    generation = random_model.generate("hello", logit_bias=bias, max_tokens=2, loop_guard=0)
    list(generation)
    assert generation.run.output in ([size - 1] * 2, [])


def test_an_unknown_setting_is_a_mistake_of_the_caller(random_model):
    with pytest.raises(TypeError, match="heat"):
        random_model.generate("hello", heat=1)


def test_settings_are_values():
    asked = {"stop": "x", "temperature": 0.5, "max_tokens": 3, "reasoning_effort": "low"}
    settings = Settings.checked(**asked)
    assert settings == Settings.checked(**asked, top_p=None, seed=None)
    assert hash(settings) == hash(Settings.checked(**asked))
    assert (settings.stop, settings.sampling, settings.loop_guard) == (("x",), {"temperature": 0.5}, TIMES)
    assert set(EFFORTS) == {"none", "minimal", "low", "medium", "high"}


# --- an answer that is begun ------------------------------------------------------------------------------------------


def test_a_begun_answer_goes_on_from_its_text(small):
    model = answering(small, "is 42.", prompt="<|im_start|>assistant\n")
    plain, ready = model.prepare("what?"), model.prepare("what?", begun="The answer ")
    assert ready.run.prompt == plain.run.prompt + small.encode("The answer ")
    generation, thinking, answer = ask(model, begun="The answer ")
    assert (thinking, answer) == ("", "is 42.")
    assert generation.run.output == small.encode("is 42.")
    assert model.prepare("what?", begun="").run.prompt == plain.run.prompt
    with pytest.raises(UsageError, match="do not fit"):
        answering(small, "x", context=12, prompt="x").prepare(
            "what?", begun="much more than twelve tokens " * 9, max_tokens=2
        )
    with pytest.raises(UsageError, match="begun: must be a text, got 3"):
        model.prepare("what?", begun=3)


def test_a_begun_answer_is_no_reasoning(small):
    model = answering(small, "4")
    with pytest.raises(UsageError, match="begun: is a part of the answer, and this prompt opens the reasoning"):
        model.prepare("what?", begun="The")
    prompt = model.prepare("what?", begun="The <think>", think_budget=0).run.prompt
    assert prompt == small.encode("<think>\n</think>\n\n", special=True) + small.encode("The <think>")
    assert prompt.count(small.think_start) == 1  # a text is never a marker
    _, thinking, answer = ask(model, begun="It is ", think_budget=0)
    assert (thinking, answer) == ("", "4")


@pytest.mark.parametrize(
    ("name", "value"), [("raw", True), ("suffix", "x"), ("response_format", {"type": "json_object"}), ("tools", [{}])]
)
def test_a_begun_answer_stands_alone(name, value):
    with pytest.raises(UsageError, match=f"begun: does not go together with {name}"):
        Settings.checked(begun="x", **{name: value})
