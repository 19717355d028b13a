"""Hold conversations through LangChain, with tools, a schema and reasoning: langchain_chat.py URL KEY MODEL

Prints one object of JSON for each thing, to compare with Python.
"""

import json
import sys

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI, OpenAI

URL, KEY, MODEL = sys.argv[1:]
HOW = {"model": MODEL, "api_key": KEY, "temperature": 0, "max_retries": 0, "timeout": 600}
chat = ChatOpenAI(base_url=f"{URL}/v1", stream_usage=True, **HOW)


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def show(name, value):
    print(json.dumps({name: value}))


def whole(chunks):
    """The sum of the chunks of a stream, and their number."""
    found, count = None, 0
    for chunk in chunks:
        found = chunk if found is None else found + chunk
        count += 1
    return found, count


def conversation():
    messages, answers = [], []
    for number, question in enumerate(["What is 12+34?", "And 2+2?", "And 3+2?"]):
        messages.append(HumanMessage(question))
        if number % 2:
            message, chunks = whole(chat.stream(messages))
            assert chunks > 3
        else:
            message = chat.invoke(messages)
        assert message.usage_metadata["output_tokens"] > 0
        answers.append(message.content)
        messages.append(AIMessage(message.content))
    show("conversation", answers)


def reasoning():
    shown = ChatDeepSeek(api_base=f"{URL}/v1", **HOW)
    message, streamed = shown.invoke("What is 12+34?"), whole(shown.stream("What is 12+34?"))[0]
    thoughts = [each.additional_kwargs["reasoning_content"] for each in (message, streamed)]
    assert thoughts[0] == thoughts[1]
    show("reasoning", thoughts[0])


def tools():
    brief = ChatOpenAI(base_url=f"{URL}/v1", reasoning_effort="none", max_completion_tokens=300, **HOW)
    bound = brief.bind_tools([add], tool_choice="any", parallel_tool_calls=False)
    message = bound.invoke("What is 1+3?")
    (call,) = message.tool_calls
    (streamed,) = whole(bound.stream("What is 1+3?"))[0].tool_calls
    assert (call["name"], call["args"]) == (streamed["name"], streamed["args"])
    result = ToolMessage(add.invoke(call["args"]), tool_call_id=call["id"])
    answer = brief.bind_tools([add]).invoke([HumanMessage("What is 1+3?"), message, result])
    show("tools", {"name": call["name"], "args": sorted(call["args"]), "answered": isinstance(answer.content, str)})


def schema():
    wanted = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 9}}}
    wanted |= {"title": "sum", "required": ["sum"], "additionalProperties": False}
    brief = ChatOpenAI(base_url=f"{URL}/v1", reasoning_effort="none", **HOW)
    found = brief.with_structured_output(wanted, method="json_schema").invoke("What is 1+3?")
    show("schema", found)


def agent():
    """An agent calls the function, reads its result, and answers. The server's model wants to call it."""
    found = create_agent(chat, [add]).invoke({"messages": [HumanMessage("What is 1+3?")]})["messages"]
    show("agent", [each.type for each in found])


def text():
    plain = OpenAI(base_url=f"{URL}/v1", max_tokens=12, **HOW)
    told = plain.invoke("Reverse 12+34:\n")
    assert "".join(plain.stream("Reverse 12+34:\n")) == told
    show("text", told)


for job in (conversation, reasoning, tools, schema, agent, text):
    job()
