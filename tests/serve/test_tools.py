"""Tool calls and JSON schemas, in chats and in responses, through OpenAI's client."""

import json

import openai
import pytest

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two digits.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
FLAT = {"type": "function", **TOOL["function"]}
QUESTION = [{"role": "user", "content": "What is 1+3?"}]
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["sum"],
    "additionalProperties": False,
}


def chat(client, **how):
    how = {"messages": QUESTION, "temperature": 0, "max_tokens": 300, "reasoning_effort": "none"} | how
    return client.chat.completions.create(model="qwq-nano", **how)


def respond(client, **how):
    how = {"input": "What is 1+3?", "temperature": 0, "max_output_tokens": 300} | how
    if "tools" in how or "text" in how:  # the small model finds no end of its reasoning about them
        how["reasoning"] = {"effort": "none"}
    return client.responses.create(model="qwq-nano", **how)


def is_call(name, arguments):
    found = json.loads(arguments)
    return name == "add" and set(found) == {"a", "b"} and found["a"] in (1, 2) and found["b"] in (3, 4)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_comes_whole_and_as_a_stream(client, choice):
    how = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    found = chat(client, **how).choices[0]
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    (call,) = found.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert is_call(call.function.name, call.function.arguments)
    name, fragments, ids, last = "", [], [], None
    for chunk in chat(client, stream=True, **how):
        last = chunk.choices[0]
        for each in last.delta.tool_calls or ():
            assert each.index == 0
            ids += [each.id] if each.id else []
            name += each.function.name or ""
            fragments += [each.function.arguments] if each.function.arguments else []
    assert last.finish_reason == "tool_calls"
    assert len(ids) == 1
    assert (name, "".join(fragments)) == (call.function.name, call.function.arguments)
    assert len(fragments) > 3


def test_a_client_that_builds_calls_from_a_stream(client):
    with client.chat.completions.stream(
        model="qwq-nano",
        messages=QUESTION,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        reasoning_effort="none",
        seed=1,
    ) as stream:
        found = stream.get_final_completion().choices[0]
    assert found.finish_reason == "tool_calls"
    assert all(is_call(call.function.name, call.function.arguments) for call in found.message.tool_calls)


def test_a_call_follows_the_reasoning(client):
    how = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "reasoning_effort": None}
    how["extra_body"] = {"think_budget": 12}
    found = chat(client, **how).choices[0]
    assert found.finish_reason == "tool_calls"
    assert found.message.reasoning_content
    thought, arguments = "", ""
    for chunk in chat(client, stream=True, **how):
        delta = chunk.choices[0].delta
        assert not arguments or not getattr(delta, "reasoning", None)
        thought += getattr(delta, "reasoning", None) or ""
        arguments += "".join(each.function.arguments or "" for each in delta.tool_calls or () if each.index == 0)
    assert thought == found.message.reasoning_content
    assert arguments == found.message.tool_calls[0].function.arguments


def test_calls_and_their_results_are_history(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 3}'}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
    ]
    assert chat(client, messages=messages, tools=[TOOL]).choices[0].message.content is not None


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_without_a_call_the_text_is_the_answer(client, choice):
    plain = chat(client, tools=[TOOL], tool_choice=choice).choices[0]
    assert plain.finish_reason in ("stop", "length")
    assert plain.message.tool_calls is None
    assert plain.message.content


def test_an_answer_keeps_to_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
    message = chat(client, response_format=form).choices[0].message
    assert set(json.loads(message.content)) == {"sum"}
    text = "".join(c.choices[0].delta.content or "" for c in chat(client, response_format=form, stream=True))
    assert text == message.content
    found = respond(client, text={"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA, "strict": True}})
    assert set(json.loads(found.output_text)) == {"sum"}
    assert chat(client, response_format={"type": "json_object"}).choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("how", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}}, "response_format"),
    ],
)
def test_errors_name_the_field(client, how, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **how)
    assert caught.value.param.startswith(param)


def test_a_response_has_the_items_of_its_events(client, nano):
    generation = nano.generate("What is 1+3?", system="Be brief.", temperature=0, max_tokens=300)
    for _ in generation:
        pass
    found = respond(client, instructions="Be brief.")
    assert found.output_text == generation.texts["answer"]
    assert found.status == "completed"
    assert found.usage.output_tokens == len(generation.run.output)
    kinds = [item.type for item in found.output]
    assert kinds == (["reasoning"] if generation.texts["thinking"] else []) + ["message"]
    if generation.texts["thinking"]:
        assert found.output[0].content[0].text == generation.texts["thinking"]
    events = [*respond(client, instructions="Be brief.", stream=True)]
    assert [each.sequence_number for each in events] == [*range(len(events))]
    assert [each.type for each in events[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == found.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == found.output_text


def test_a_client_that_builds_a_response_from_events(client):
    with client.responses.stream(model="qwq-nano", input="What is 1+3?", temperature=0) as stream:
        built = stream.get_final_response()
    assert built.output_text == respond(client).output_text


def test_a_response_calls_a_function(client):
    how = {"tools": [FLAT], "tool_choice": "required", "parallel_tool_calls": False}
    found = respond(client, **how)
    (call,) = [item for item in found.output if item.type == "function_call"]
    assert is_call(call.name, call.arguments)
    events = [*respond(client, stream=True, **how)]
    deltas = [each.delta for each in events if each.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    (done,) = [each for each in events if each.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments
    history = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is 1+3?"}]},
        *[item.model_dump() for item in found.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "4"},
    ]
    assert respond(client, input=history, tools=[FLAT]).output


def test_a_response_that_is_cut_off_says_so(client):
    found = respond(client, max_output_tokens=3)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [*respond(client, max_output_tokens=3, stream=True)][-1].type == "response.incomplete"


@pytest.mark.parametrize("effort", ["none", "low", "medium", "high"])
def test_efforts(client, effort):
    assert respond(client, reasoning={"effort": effort}).reasoning.effort == effort
    assert chat(client, reasoning_effort=effort).choices


@pytest.mark.parametrize(
    ("how", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "picture"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"extra_body": {"unknown": 1}}, "unknown"),
        ({"reasoning": {"effort": "low", "depth": 3}}, "depth"),
    ],
)
def test_errors_of_responses_name_the_field(client, how, param):
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, **how)
    assert caught.value.param == param
