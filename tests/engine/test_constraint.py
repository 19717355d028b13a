"""Answers within a grammar: where it begins and ends, what it allows, and which grammars are refused."""

import json
import re
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import qwq_ref
from qwq_ref.engine.grammar import check, grammar_of, request
from qwq_ref.engine.model import Model
from qwq_ref.errors import UsageError
from qwq_ref.text import ToolParser
from qwq_ref.text.tools import Arguments, CallBegins, CallEnds
from tests.support.scripts import Given, model_that_says, read

OPENS = "<|im_start|>assistant\n<think>\n"
DIGIT = {"type": "regex", "regex": "[0-9]+"}


def json_schema(schema, strict=True):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": strict}}


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano")


def tool(name, properties, **more):
    parameters = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("weather", {"place": {"enum": ["Ulm", "Bonn"]}}), tool("add", {"a": {"type": "integer"}})]


# --- Where the grammar begins and ends --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def says(small):
    """A model that wants to say a text, and its answer to a prompt under [0-9]+."""

    def says(prompt, text, form=DIGIT, **more):
        model = model_that_says(small, small.encode(text, special=True), Given(small.encode(prompt, special=True)))
        generation = model.generate("x", response_format=form, temperature=0, max_tokens=60, **more)
        return *read(generation), generation.run

    return says


def test_reasoning_is_free_and_the_answer_is_not(says):
    thinking, answer, _ = says(OPENS, "so</think>\n\n7</think><think>5")
    assert thinking == "so"
    assert re.fullmatch("7[0-9]*", answer)


def test_line_ends_between_reasoning_and_answer_are_few(small, says):
    for text in ("so</think>7", "so</think>\n7", "so</think>\n\n7"):
        assert says(OPENS, text)[1].startswith("7")
    _, answer, run = says(OPENS, "so</think>" + "\n" * 9 + "7")
    assert re.fullmatch("[0-9]+", answer)
    assert small.decode(run.output).count("\n") == 2


def test_a_model_without_reasoning_is_bound_from_the_first_token(says):
    thinking, answer, _ = says("x", "\n\nHello 7")
    assert thinking == ""
    assert re.fullmatch("[0-9]+", answer)


def test_a_model_may_open_its_reasoning_itself_unless_that_is_off(small, says):
    thinking, answer, _ = says("x", "<think>hm</think>\n\n7")
    assert thinking == "hm"
    assert answer.startswith("7")
    thinking, answer, run = says("x", "<think>7", think_budget=0)
    assert thinking == ""
    assert small.think_start not in run.output
    assert re.fullmatch("[0-9]+", answer)


def test_markers_and_special_tokens_are_no_text_of_an_answer(small, says):
    form = {"type": "regex", "regex": "a(.|\n)*b"}
    _, answer, run = says("x", "a<think>c</think>d<|im_start|><tool_call>b", form)
    assert not {small.think_start, small.think_end, *small.special} & {*run.output}
    assert small.added["<tool_call>"] in run.output
    assert re.fullmatch("a.*<tool_call>b", answer, re.DOTALL)


def test_with_thinking_off_the_prompt_has_closed_it(small, says):
    _, answer, run = says(OPENS, "\n\n7", think_budget=0)
    assert small.decode(run.output) == answer
    assert re.fullmatch("[0-9]+", answer)


def test_a_budget_ends_the_reasoning_and_then_the_grammar_begins(says):
    thinking, answer, _ = says(OPENS, "a very long thought", think_budget=2)
    assert "thought long enough" in thinking
    assert re.fullmatch("[0-9]+", answer)


def test_only_end_tokens_follow_a_complete_answer(says):
    _, answer, run = says("x", "123 and more", {"type": "regex", "regex": "[0-9]{2}"})
    assert (answer, run.finish_reason) == ("12", "stop")


def test_an_end_token_waits_for_the_grammar(says):
    _, answer, run = says("x", "1", {"type": "regex", "regex": "[0-9]{3,4}"})  # the script ends after 1
    assert len(answer) == 3
    assert run.finish_reason == "stop"


def test_the_mask_leaves_logits_and_is_float32(nano):
    model = nano
    seen = []
    ready = model.prepare("x", response_format=DIGIT, think_budget=0)
    logits = np.linspace(-1, 1, model.vocabulary.size, dtype=np.float32)
    before = logits.copy()
    masked = ready.limits["constrain"](logits, seen)
    assert masked.dtype == np.float32
    assert np.array_equal(logits, before)
    allowed = {i for i in range(len(logits)) if re.fullmatch(b"[0-9]+", model.tokenizer.token_bytes(i))}
    assert set(np.flatnonzero(np.isfinite(masked))) == allowed
    assert all(masked[i] == logits[i] for i in allowed)


# --- Every answer fits ------------------------------------------------------------------------------------------------

NAMES = st.text("abcxyz_", min_size=1, max_size=3)
LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "ab"}, {"type": ["integer", "null"]}]),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, *[st.integers(-99, 999)] * 2
    ),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 4)),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-9, 9), st.booleans(), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{2,3}$"}, {"type": "string", "format": "date"}]),
)


def objects(inner):
    return st.dictionaries(NAMES, inner, max_size=3).flatmap(
        lambda fields: st.lists(st.sampled_from([*fields] or ["a"]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": fields,
                "required": [name for name in required if name in fields],
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
        st.lists(inner, max_size=3).map(lambda some: {"type": "array", "prefixItems": some, "items": False}),
    ),
    max_leaves=6,
)


def test_an_answer_that_ends_by_itself_fits_its_schema(nano):
    ended = []

    @settings(max_examples=max(60, settings().max_examples // 20))
    @given(SCHEMAS, st.integers(0, 2**32), st.sampled_from([None, 0, 5]))
    def answers(schema, seed, budget):
        generation = nano.generate(
            "What is 12+34?",
            response_format=json_schema(schema),
            temperature=2,
            seed=seed,
            think_budget=budget,
            max_tokens=300,
            top_k=0,
            top_p=1,
        )
        _, answer = read(generation)
        ended.append(generation.run.finish_reason == "stop")
        if ended[-1]:
            Draft202012Validator(schema).validate(json.loads(answer))

    answers()
    assert sum(ended) > len(ended) / 3


def test_json_mode(nano):
    for seed in range(8):
        generation = nano.generate(
            "x", response_format={"type": "json_object"}, temperature=2, seed=seed, max_tokens=200
        )
        _, answer = read(generation)
        if generation.run.finish_reason == "stop":
            assert isinstance(json.loads(answer), dict)


def test_many_answers_keep_the_bits_that_each_has_alone(nano):
    form, prompts = (
        json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 4}),
        ["1+2?", "3+4?", "56+7?"],
    )
    settings = {"response_format": form, "seed": 5, "temperature": 1.5, "max_tokens": 120}
    alone = []
    for prompt in prompts:
        generation = nano.generate(prompt, **settings)
        read(generation)
        alone.append(generation.run.output)
    together = {number: answer.run.output for number, answer in nano.generate_all(prompts, parallel=3, **settings)}
    assert [together[number] for number in range(3)] == alone


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"type": "regex", "regex": "(yes|no)/[a-c]\\/?\n"}, r"(yes|no)/[a-c]/?\n"),
        ({"type": "grammar", "grammar": 'root ::= "yes" | no\nno ::= "n" [o]{1,3}'}, "yes|no{1,3}"),
        ({"type": "grammar", "grammar": 'start: "yes" | NO\nNO: /no{1,3}/'}, "yes|no{1,3}"),
    ],
)
def test_regular_expressions_and_grammars(nano, form, fits):
    for seed in range(5):
        generation = nano.generate("x", response_format=form, temperature=2, seed=seed, think_budget=0, max_tokens=30)
        assert re.fullmatch(fits, read(generation)[1])


# --- Tools ------------------------------------------------------------------------------------------------------------


def calls(answer, sure=False):
    parser = ToolParser(sure=sure)
    found = []
    for event in [*parser.feed(answer), *parser.finish()]:
        match event:
            case CallBegins(_, name):
                found.append([name, ""])
            case Arguments(_, text):
                found[-1][1] += text
            case CallEnds():
                pass
            case _:
                found.append(event)
    return found


def answers(nano, count=12, **request):
    for seed in range(count):
        generation = nano.generate("x", temperature=2, seed=seed, think_budget=0, max_tokens=300, **request)
        _, answer = read(generation)
        if generation.run.finish_reason == "stop":
            yield answer


def fits(name, arguments):
    schema = next(tool["function"]["parameters"] for tool in TOOLS if tool["function"]["name"] == name)
    Draft202012Validator(schema).validate(json.loads(arguments))


def test_required_calls(nano):
    counts = set()
    for answer in answers(nano, tools=TOOLS, tool_choice="required"):
        found = calls(answer)
        assert found == calls(answer, sure=True)
        counts.add(len(found))
        for name, arguments in found:
            fits(name, arguments)
    assert counts
    assert max(counts) <= 16


def test_a_named_function_is_called_once(nano):
    for choice in ({"type": "function", "function": {"name": "add"}}, {"name": "add"}):
        found = [calls(answer) for answer in answers(nano, tools=TOOLS, tool_choice=choice)]
        assert found
        assert all(len(one) == 1 and one[0][0] == "add" for one in found)


def test_one_call_where_calls_are_not_parallel(nano):
    found = [calls(a) for a in answers(nano, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)]
    assert found
    assert {len(one) for one in found} == {1}


def test_a_call_or_an_answer_that_fits(nano):
    kinds = set()
    for answer in answers(nano, 30, tools=TOOLS, response_format=json_schema({"type": "boolean"})):
        kinds.add(answer[0])
        if answer[0] == "<":
            for name, arguments in calls(answer):
                fits(name, arguments)
        else:
            assert isinstance(json.loads(answer), bool)
    assert "<" in kinds
    assert len(kinds) > 1


def test_a_function_without_parameters_takes_none(nano):
    for tools in ([{"function": {"name": "now"}}], [{"name": "now", "parameters": {}}]):
        for answer in answers(nano, 3, tools=tools, tool_choice="required", parallel_tool_calls=False):
            assert [name for name, _ in calls(answer)] == ["now"]
            assert json.loads(calls(answer)[0][1]) == {}


def test_tools_go_to_the_template_unless_none_may_be_called(nano, monkeypatch):
    given_tools = []
    monkeypatch.setattr(Model, "prompt_ids", lambda self, *args: given_tools.append(args[3]) or [1])
    for choice in ("auto", "none", "required"):
        nano.prepare("x", tools=TOOLS, tool_choice=choice)
    assert given_tools == [TOOLS, None, TOOLS]


# --- Refused ----------------------------------------------------------------------------------------------------------

SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ({"response_format": 3}, "response_format.type", "one of text, json_object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "one of text, json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "with a schema"),
        ({"response_format": json_schema([])}, SCHEMA, "must be an object"),
        ({"response_format": json_schema(False)}, SCHEMA, "no value fits"),
        ({"response_format": json_schema({"a": float("nan")})}, SCHEMA, "no JSON"),
        ({"response_format": json_schema({"a": object()})}, SCHEMA, "no JSON"),
        ({"response_format": json_schema({}, strict=1)}, "response_format.json_schema.strict", "true or false"),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex", "not empty"),
        ({"response_format": {"type": "regex", "regex": "\ud800"}}, "response_format.regex", "surrogate"),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format.regex", "unclosed group"),
        ({"response_format": {"type": "grammar", "grammar": "root ::= a"}}, "response_format.grammar", ""),
        ({"response_format": {"type": "grammar", "grammar": "nothing"}}, "response_format.grammar", ""),
        ({"response_format": json_schema({"type": "objct"})}, SCHEMA, "Invalid type: objct"),
        ({"response_format": json_schema({"not": {}})}, SCHEMA, 'Unimplemented keys: ["not"]'),
        ({"response_format": json_schema({"properties": {"a": {"pattern": "("}}})}, SCHEMA, "unclosed group"),
        ({"response_format": json_schema({"$ref": "#/$defs/a"})}, SCHEMA, "does not exist"),
        ({"response_format": json_schema({"$ref": "file:///etc/passwd"})}, SCHEMA, "does not fetch"),
        ({"response_format": json_schema({"$ref": "http://127.0.0.1:9/"})}, SCHEMA, "does not fetch"),
        ({"tools": "x"}, "tools", "list"),
        ({"tools": [3]}, "tools[0]", "object with a function"),
        ({"tools": [{"function": {"name": 'a"b'}}]}, "tools[0].function.name", "1 to 64"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name", "another"),
        ({"tools": [{"function": {"name": "f", "parameters": 3}}]}, "tools[0].function.parameters", "object"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "must be auto"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "wether"}}}, "tool_choice", "did you mean weather?"),
        ({"tools": TOOLS, "response_format": DIGIT}, "response_format", "JSON schema"),
        (
            {"tools": [*TOOLS, tool("f", {"a": {"type": "objct"}})], "tool_choice": "required"},
            "tools[2].function.parameters",
            "Invalid type",
        ),
        ({"tools": TOOLS, "tool_choice": "required", "raw": True}, "raw", "no tools"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_computed(nano, monkeypatch, asked, field, says):
    monkeypatch.setattr(nano.backend, "run", None)
    with pytest.raises(UsageError) as problem:
        nano.generate("x", **asked)
    assert problem.value.field == field
    assert says in problem.value.problem
    assert "\n" not in str(problem.value)


def test_without_strict_unknown_keywords_count_nothing(nano):
    schema = {"oneOf": [{"const": 1}, {"type": "integer", "enum": [1, 2]}], "not": {"const": 3}}
    generation = nano.generate("x", response_format=json_schema(schema, None), think_budget=0, max_tokens=9)
    assert read(generation)[1] in "12"


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE = {
    "deep": nested(2000),
    "deeper than JSON may be": nested(100_000),
    "too long": {"enum": ["x" * (1 << 20)]},
    "many properties": {
        "properties": {f"p{n}": {} for n in range(20_000)},
        "required": [f"p{n}" for n in range(20_000)],
    },
    "an intersection of patterns": {"allOf": [{"type": "string", "pattern": f"a.*b{n}.*c"} for n in range(40)]},
    "a large automaton": {"type": "integer", "multipleOf": 1_000_003},
    "itself": {"$ref": "#"},
    "one of itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_within_limits(nano, name):
    vocabulary = nano.vocabulary
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UsageError, match=re.escape(SCHEMA)) as problem:
        nano.generate("x", response_format=json_schema(HOSTILE[name]))
    assert "\n" not in str(problem.value)
    assert len(str(problem.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10
    assert time.process_time() - started < 5
    assert nano.vocabulary is vocabulary


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "type": "object"}}},
        {"type": "string", "pattern": "^(a|b)*a(a|b){400}$"},
        {"type": "string", "pattern": "(x+x+)+y"},
        {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
        {"type": "string", "minLength": 100_000, "maxLength": 200_000},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2000)}},
    ],
)
def test_a_heavy_schema_has_bounded_steps(nano, schema):
    started, refused = time.process_time(), None
    try:
        generation = nano.generate(
            "x", response_format=json_schema(schema), think_budget=0, max_tokens=40, temperature=2, seed=1
        )
        read(generation)
    except UsageError as problem:
        refused = problem
    assert refused is None or (refused.field == SCHEMA and "\n" not in str(refused))
    assert time.process_time() - started < 5


def test_many_bad_tools_name_the_one_that_crashes():
    bad = {"function": {"name": "bad", "parameters": HOSTILE["a large automaton"] | {"type": "integer"}}}
    with pytest.raises(UsageError, match=r"^tools\[2\].function.parameters: is too complex"):
        check(grammar_of(tools=[*TOOLS, bad], tool_choice="required"))


def test_without_llguidance_the_error_names_the_extra(nano, monkeypatch):
    monkeypatch.setattr(request.importlib.util, "find_spec", lambda name: None)
    for form in (DIGIT, json_schema({})):
        with pytest.raises(UsageError, match=r"pip install 'qwq_ref\[grammar\]'"):
            nano.generate("x", response_format=form)
    read(nano.generate("x", response_format={"type": "text"}, max_tokens=1))


def test_llguidance_is_imported_by_the_first_grammar_only():
    ask = "list(qwq_ref.load('qwq-nano').generate('x', max_tokens=1))"
    code = f"import sys, qwq_ref; {ask}; print('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
