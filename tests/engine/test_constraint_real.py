"""A published model whose answers keep to a JSON schema, and that calls tools."""

import json
import time

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import qwq_ref
from qwq_ref.text import ToolParser
from qwq_ref.text.tools import Arguments, CallBegins
from tests.support.real_models import QWEN_05B, real_model

pytestmark = pytest.mark.real

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "languages": {
            "type": "array",
            "items": {"enum": ["English", "German", "French"]},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["name", "age", "languages"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["place", "unit"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def model():
    return qwq_ref.load(real_model(QWEN_05B), context=1024)


def said(model, prompt, **settings):
    generation = model.generate(prompt, max_tokens=200, **settings)
    answer = "".join(piece.text for piece in generation)
    return answer, generation.run


def test_a_published_model_fills_a_schema(model):
    form = {"type": "json_schema", "json_schema": {"schema": PERSON, "strict": True}}
    question = "Anna is 34 and speaks German and English. Write that as JSON."
    answer, run = said(model, question, response_format=form, temperature=0)
    assert run.finish_reason == "stop"
    assert json.loads(answer) == {"name": "Anna", "age": 34, "languages": ["German", "English"]}
    ended = 0
    for seed in range(10):
        answer, run = said(model, question, response_format=form, temperature=2, top_k=0, top_p=1, seed=seed)
        if run.finish_reason == "stop":
            ended += 1
            Draft202012Validator(PERSON).validate(json.loads(answer))
    assert ended >= 5


def test_a_published_model_calls_a_tool(model):
    answer, run = said(
        model,
        "How warm is it in Ulm?",
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    assert run.finish_reason == "stop"
    begins, arguments, _ = ToolParser().feed(answer)
    assert isinstance(begins, CallBegins)
    assert isinstance(arguments, Arguments)
    assert begins.name == "weather"
    assert json.loads(arguments.text)["place"] == "Ulm"
    Draft202012Validator(WEATHER["function"]["parameters"]).validate(json.loads(arguments.text))
    assert len(model.tokenizer.encode(answer)) > len(run.output)  # <tool_call> is one token here


def test_a_mask_costs_little_beside_a_decode_step(model):
    started = time.perf_counter()
    assert model.vocabulary.size > 151_000
    assert time.perf_counter() - started < 10
    form = {"type": "json_schema", "json_schema": {"schema": PERSON, "strict": True}}
    ready = model.prepare("x", response_format=form)
    logits = np.zeros(model.vocabulary.size, np.float32)
    output, times = [], []
    for identity in model.tokenizer.encode('{"name": "Anna Maria", "age": 34, "languages": ["German"]}'):
        started = time.perf_counter()
        assert np.isfinite(ready.limits["constrain"](logits, output)[identity])
        times.append(time.perf_counter() - started)
        output.append(identity)
    assert np.median(times) < 0.005
