"""The rest of what people do with OpenAI's package: its helpers, its asynchronous client, its errors, stop texts."""

import asyncio
from typing import Literal

import openai
import pydantic
import pytest

from tests.support.servers import serving, until

KEY = "correct-horse-7"
QUESTION = [{"role": "user", "content": "What is 123+456?"}]


class Sum(pydantic.BaseModel):
    """The sum of two digits."""

    model_config = {"extra": "forbid"}
    sum: Literal[3, 4, 5]


def ask(client, messages=QUESTION, **how):
    return client.chat.completions.create(model="qwq-nano", messages=messages, **{"temperature": 0, **how})


def said(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_stop_texts_end_a_chat(client):
    whole = ask(client).choices[0].message
    stop = whole.content[4:7]
    found = ask(client, stop=stop).choices[0]
    assert found.message.content == whole.content[: whole.content.index(stop)]
    assert found.finish_reason == "stop"
    assert said(ask(client, stop=[stop, "never"], stream=True)) == found.message.content
    thought = whole.reasoning_content[:5]  # in the reasoning, a stop text ends nothing
    assert ask(client, stop=thought).choices[0].message.reasoning_content == whole.reasoning_content


def test_an_answer_is_parsed_behind_its_reasoning(client):
    how = {"model": "qwq-nano", "messages": QUESTION, "temperature": 0, "response_format": Sum}
    how["extra_body"] = {"think_budget": 12}
    message = client.chat.completions.parse(**how).choices[0].message
    assert message.parsed.sum in (3, 4, 5)
    assert message.reasoning_content
    with client.chat.completions.stream(**how) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == message.parsed
    found = client.responses.parse(
        model="qwq-nano", input="What is 1+3?", text_format=Sum, temperature=0, reasoning={"effort": "none"}
    )
    assert found.output_parsed.sum in (3, 4, 5)


def test_a_tool_from_a_class(client):
    tools = [openai.pydantic_function_tool(Sum)]
    how = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "reasoning_effort": "none"}
    found = client.chat.completions.parse(model="qwq-nano", messages=QUESTION, temperature=0, **how)
    assert found.choices[0].message.tool_calls[0].function.parsed_arguments.sum in (3, 4, 5)


def test_a_message_of_the_package_is_history(client):
    messages = []
    for question in ("What is 1+2?", "And 2+2?", "And 3+2?"):
        messages.append({"role": "user", "content": question})
        messages.append(ask(client, messages).choices[0].message)  # with reasoning, refusal and more
        assert messages[-1].content


def test_many_at_once(server, client):
    questions = [[{"role": "user", "content": f"What is {n}+{n}?"}] for n in range(10, 16)]
    wanted = [ask(client, each).choices[0].message.content for each in questions]

    async def one(many, messages):
        stream = await many.chat.completions.create(model="qwq-nano", messages=messages, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:
            return await asyncio.gather(*(one(many, each) for each in questions))

    assert asyncio.run(all_of_them()) == wanted


def test_a_client_that_gives_up_ends_its_answer(server, client):
    before = server.counts.cancelled
    endless = {"temperature": 9, "seed": 1, "n": 8}
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.05), **endless)
    with ask(client, stream=True, **endless) as stream:
        next(iter(stream))
    until(lambda: server.counts.cancelled >= before + 2 and server.counts.running == 0)


def test_a_wrong_key(nano):
    with serving(lambda: nano, key=KEY) as running:
        for key, kind in ((KEY, None), ("wrong", openai.AuthenticationError)):
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
                if kind is None:
                    assert client.models.list().data
                    continue
                with pytest.raises(kind) as caught:
                    ask(client)
                assert caught.value.code == "invalid_api_key"


def test_a_server_that_is_not_there():
    with (
        openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()
