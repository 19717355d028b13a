"""Chats through OpenAI's own client: the answers have the bits that `Model.generate` gives."""

import time

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is 123+456?"}]


def alone(model, prompt="What is 123+456?", **how):
    generation = model.generate(prompt, **how)
    for _ in generation:
        pass
    return generation


def ask(client, messages=QUESTION, **how):
    return client.chat.completions.create(model="qwq-nano", messages=messages, **how)


def collect(stream):
    """The text, the reasoning, and the last chunk with a choice, of a stream."""
    said = thought = ""
    last = None
    for chunk in stream:
        if chunk.choices:
            last, delta = chunk, chunk.choices[0].delta
            said += delta.content or ""
            assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
            thought += getattr(delta, "reasoning_content", None) or ""
    return said, thought, last


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.3, "seed": 7}, {"seed": 3, "max_tokens": 9}])
def test_an_answer_has_the_bits_of_generate(client, nano, how):
    mine = alone(nano, **how)
    found = ask(client, **how)
    message = found.choices[0].message
    assert message.content == mine.texts["answer"]
    assert message.reasoning_content == message.reasoning == mine.texts["thinking"]
    assert found.choices[0].finish_reason == ("length" if "max_tokens" in how else "stop")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(mine.run.prompt), len(mine.run.output))
    assert found.usage.completion_tokens_details.reasoning_tokens == mine.thinking_tokens
    said, thought, last = collect(ask(client, stream=True, **how))
    assert (said, thought) == (mine.texts["answer"], mine.texts["thinking"])
    assert last.choices[0].finish_reason == found.choices[0].finish_reason
    assert last.timings["predicted_n"] == len(mine.run.output)


def test_usage_comes_last_in_a_stream_where_it_is_asked_for(client, nano):
    mine = alone(nano, temperature=0)
    chunks = [*ask(client, temperature=0, stream=True, stream_options={"include_usage": True})]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(mine.run.output)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == len(mine.run.prompt) - 1


def test_choices_have_the_seeds_that_follow(client, nano):
    how = {"temperature": 2.5, "max_tokens": 30}
    mine = ["".join(alone(nano, seed=seed, **how).texts.values()) for seed in (5, 6, 7)]
    assert len({*mine}) == 3
    found = ask(client, seed=5, n=3, **how)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert [(choice.message.reasoning or "") + choice.message.content for choice in found.choices] == mine
    assert found.usage.completion_tokens > 2 * 30 - 10
    texts = ["", "", ""]
    for chunk in ask(client, seed=5, n=3, stream=True, **how):
        delta = chunk.choices[0].delta
        texts[chunk.choices[0].index] += getattr(delta, "reasoning", "") + (delta.content or "")
    assert texts == mine


@pytest.mark.parametrize("stream", [True, False])
def test_the_next_turn_begins_warm(client, nano, server, stream):
    """The reasoning of the first turn is left out of the second: what follows it was computed in the background."""
    question = f"What is {'7' if stream else '8'}00+{'7' if stream else '8'}?"
    first = [{"role": "user", "content": question}]
    if stream:
        said, thought, _ = collect(ask(client, first, temperature=0, stream=True))
    else:
        message = ask(client, first, temperature=0).choices[0].message
        said, thought = message.content, message.reasoning
    assert said
    assert thought
    told = [*first, {"role": "assistant", "content": said}]
    wanted = len(nano.template.encode(nano.tokenizer, told, add_generation_prompt=False))

    def warm():
        second = [*told, {"role": "user", "content": "And 1+1?"}]
        return ask(client, second, max_tokens=1).usage.prompt_tokens_details.cached_tokens >= wanted

    time.sleep(0.5)  # the user reads
    assert warm()


def test_prompt_progress_where_it_is_asked_for(client):
    text = [{"role": "user", "content": "a b " * 150}]
    chunks = ask(client, text, stream=True, max_tokens=2, extra_body={"return_progress": True})
    found = [chunk.prompt_progress for chunk in chunks if getattr(chunk, "prompt_progress", None)]
    assert found[-1]["processed"] == found[-1]["total"] > 300
    assert [each["processed"] for each in found] == sorted(each["processed"] for each in found)
    assert not any(getattr(chunk, "prompt_progress", None) for chunk in ask(client, text, stream=True, max_tokens=2))


def test_a_system_message_and_parts_of_text(client, nano):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+2?"}]},
    ]
    mine = alone(nano, "What is 1+2?", system="Be brief.", temperature=0)
    assert ask(client, messages, temperature=0).choices[0].message.content == mine.texts["answer"]


@pytest.mark.parametrize(
    ("how", "kind", "param"),
    [
        ({"extra_body": {"best_answer": 1}}, openai.BadRequestError, "best_answer"),
        ({"extra_body": {"store": True}}, openai.BadRequestError, "store"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "prompt"),
        ({"n": 17}, openai.BadRequestError, "n"),
        ({"seed": -1}, openai.BadRequestError, "seed"),
        ({"extra_body": {"temperature": "1"}}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "robot", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream_options"),
    ],
)
def test_errors_name_the_field(client, how, kind, param):
    with pytest.raises(kind) as caught:
        ask(client, **how)
    assert caught.value.param == param
    assert caught.value.body["message"].startswith(param.split("[")[0])


def test_a_prompt_that_does_not_fit_has_its_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, max_tokens=100_000)
    assert caught.value.code == "context_length_exceeded"


def test_another_model_is_refused(client):
    with pytest.raises(openai.NotFoundError, match="qwq-nano") as caught:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_fields_that_change_nothing_are_accepted(client):
    how = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True}
    assert ask(client, max_tokens=1, **how).choices


def test_the_model_is_listed(client, nano):
    (found,) = client.models.list().data
    assert (found.id, found.max_model_len) == ("qwq-nano", nano.context)
    assert client.models.retrieve("qwq-nano").id == "qwq-nano"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
