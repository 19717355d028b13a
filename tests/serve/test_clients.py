"""Other programs that call the server, each from its own environment: the tier `clients`."""

import contextlib
import copy
import json
import os
import subprocess
import urllib.request

import numpy as np
import pytest

import qwq_ref
from qwq_ref.serve.limits import ServerLimits
from qwq_ref.serve.reach import bind
from tests.support.client_programs import SCRIPTS, node_package, python_with, run_client
from tests.support.paths import PACKAGE
from tests.support.real_models import QWEN_05B, real_model
from tests.support.servers import serving, until

pytestmark = pytest.mark.clients
KEY = "correct-horse-7"


@pytest.fixture(scope="module")
def guarded(nano):
    """A server with a key, and with little room."""
    with serving(lambda: nano, ServerLimits(running=2, waiting=4), key=KEY) as running:
        yield running


def greedy(model, prompt, **how):
    generation = model.generate(prompt, temperature=0, **how)
    for _ in generation:
        pass
    return generation


def test_openai_for_javascript(nano, guarded, tmp_path):
    folder = node_package("openai").parents[1]
    lines = run_client("node", SCRIPTS / "openai.mjs", folder, guarded.url, KEY, folder=tmp_path).splitlines()
    assert sum(line.startswith("ok: ") for line in lines) == 20
    texts = greedy(nano, "What is 123+456?").texts
    assert json.loads(lines[-1]) == {
        "model": "qwq-nano",
        "content": texts["answer"],
        "reasoning_content": texts["thinking"],
    }


@pytest.mark.real
def test_openai_for_javascript_with_a_published_model(tmp_path):
    """A model without reasoning, and with a tokenizer of 151,000 tokens."""
    folder = node_package("openai").parents[1]
    model = qwq_ref.load(real_model(QWEN_05B), context=2048)
    with serving(lambda: model, ServerLimits(running=2, waiting=4), key=KEY) as running:
        out = run_client("node", SCRIPTS / "openai.mjs", folder, running.url, KEY, folder=tmp_path)
    assert out.count("ok: ") == 20


DOCUMENTS = [
    {"q": "Reverse 12+34:\n", "choices": ["21+43", "12+34", "43+21"], "y": 0},
    {"q": "What is 12+34? ", "choices": ["46", "47", " 46 "], "y": 0},
    {"q": "排序 3,1,2：", "choices": ["1,2,3", "3,2,1", "一二三"], "y": 0},
]
SCORED = """
task: scored
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: y
target_delimiter: ""
metric_list:
  - metric: acc
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{choices[y]}}}}"
target_delimiter: ""
generation_kwargs:
  until: ["+", "zzz"]
  max_gen_toks: 20
  temperature: 0
metric_list:
  - metric: exact_match
"""


def samples(folder, task):
    """The documents of a task, each with lm-eval's requests and answers."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(found, key=lambda each: each["doc_id"])


def loglikelihood(model, context, rest):
    """The sum of the log-probabilities of a continuation, and whether it is the likeliest one.

    lm-eval moves spaces at the end of the context to the continuation. It then takes as many ids of the whole text as
    remain behind the number of ids of the context, also where a token lies across the border.
    """
    before = model.tokenizer.encode(context.rstrip())
    count = len(before)
    ids = before + model.tokenizer.encode(context + rest)[count:]
    logits = model.logits(ids)[:, : model.tokenizer.size].astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    rows = (logits - (largest + np.log(np.exp(logits - largest).sum(-1, keepdims=True))))[count - 1 : -1]
    return sum(row[i] for row, i in zip(rows, ids[count:], strict=True)), [*rows.argmax(-1)] == ids[count:]


def test_lm_eval_has_the_loglikelihoods_of_python(nano, guarded, tmp_path):
    python = python_with("lm-eval")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    (tmp_path / "scored.yaml").write_text(SCORED.format(data=data))
    (tmp_path / "written.yaml").write_text(WRITTEN.format(data=data))
    url, tokenizer = f"{guarded.url}/v1/completions", PACKAGE / "models" / "qwq-nano"
    run_client(
        python.with_name("lm_eval"),
        *("--model", "local-completions", "--tasks", "scored,written", "--include_path", tmp_path),
        *("--model_args", f"model=qwq-nano,base_url={url},tokenizer={tokenizer},max_length={nano.context}"),
        *("--log_samples", "--output_path", tmp_path / "out"),
        folder=tmp_path,
        OPENAI_API_KEY=KEY,
        HF_HUB_OFFLINE="1",
    )
    for document, sample in zip(DOCUMENTS, samples(tmp_path / "out", "scored"), strict=True):
        for choice, (value, likeliest) in zip(document["choices"], sample["filtered_resps"], strict=True):
            mine = loglikelihood(nano, document["q"], choice)
            assert (float(value), str(likeliest)) == (mine[0], str(mine[1])), (document["q"], choice)
    for document, sample in zip(DOCUMENTS, samples(tmp_path / "out", "written"), strict=True):
        mine = greedy(nano, document["q"], raw=True, stop=["+", "zzz"], max_tokens=20)
        assert sample["resps"][0][0] == "".join(mine.texts.values())


@pytest.fixture(scope="module")
def eager(nano):
    """A server whose model calls a function before it answers, with digits. The shipped one is too small for that."""
    model = copy.copy(nano)

    model.__dict__["asked"] = asked = []

    def prepare(prompt, **how):
        asked.append((prompt, how))
        if how.get("tools"):
            how |= {"reasoning_effort": "none", "max_tokens": 200, "parallel_tool_calls": False}
            how["tools"] = [with_digits(each) for each in how["tools"]]
            how["tool_choice"] = "required" if prompt[-1]["role"] == "user" else "auto"
        return nano.prepare(prompt, **how)

    model.__dict__["prepare"] = prepare
    with serving(lambda: model, key=KEY) as running:
        running.asked = asked
        yield running


def with_digits(tool):
    """A tool whose arguments are all 1 or 2."""
    names = [*tool["function"]["parameters"]["properties"]]
    closed = {"type": "object", "required": names, "additionalProperties": False}
    closed["properties"] = {name: {"enum": [1, 2]} for name in names}
    return {"type": "function", "function": {**tool["function"], "parameters": closed}}


def turns(model, *questions):
    """The greedy answers to questions, each behind the answers before it."""
    messages, answers = [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        answers.append(greedy(model, messages).texts["answer"])
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_langchain(nano, eager, tmp_path):
    python = python_with("langchain")
    lines = run_client(python, SCRIPTS / "langchain_chat.py", eager.url, KEY, "qwq-nano", folder=tmp_path).splitlines()
    found = {name: value for line in lines for name, value in json.loads(line).items()}
    assert found["conversation"] == turns(nano, "What is 12+34?", "And 2+2?", "And 3+2?")
    assert found["reasoning"] == greedy(nano, "What is 12+34?").texts["thinking"]
    assert found["tools"] == {"name": "add", "args": ["a", "b"], "answered": True}
    assert set(found["schema"]) == {"sum"}
    assert found["agent"] == ["human", "ai", "tool", "ai"]
    assert found["text"] == "".join(greedy(nano, "Reverse 12+34:\n", raw=True, max_tokens=12).texts.values())


MODELS = """
- model_id: nano
  model_name: qwq-nano
  api_base: {url}/v1
  api_key_name: qwq
  supports_tools: true
  supports_schema: true
- model_id: thinker
  model_name: qwq-nano
  api_base: {url}/v1
  api_key_name: qwq
  responses: true
  reasoning: true
"""
SUM = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["sum"]}
FUNCTIONS = """
def add(a: int, b: int) -> str:
    "Add two numbers."
    return "It is done."
"""


def test_llm(nano, eager, tmp_path):
    program = python_with("llm").with_name("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=eager.url))
    how = {"folder": tmp_path, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": KEY}

    def ask(*words):
        return run_client(program, *words, **how).removesuffix("\n")

    greedily = ("-o", "temperature", "0")
    first = ask("-m", "nano", "What is 12+34?", *greedily)
    second = ask("-c", "And 2+2?", *greedily)
    assert [first, second] == turns(nano, "What is 12+34?", "And 2+2?")
    assert ask("-m", "nano", "--no-stream", "What is 12+34?", *greedily) == first
    assert ask("-m", "thinker", "What is 12+34?", *greedily) == first
    schema = json.dumps({**SUM, "additionalProperties": False})
    assert set(json.loads(ask("-m", "nano", "--schema", schema, "What is 1+3?", *greedily))) == {"sum"}
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    ask("-m", "nano", "--functions", tmp_path / "functions.py", "What is 1+3?", *greedily)
    logged = json.loads(ask("logs", "--json", "-n", "2"))
    assert [[call["name"] for call in each["tool_calls"]] for each in logged] == [["add"], []]
    assert [[result["output"] for result in each["tool_results"]] for each in logged] == [[], ["It is done."]]


def test_the_package_of_continue(nano, eager, tmp_path):
    folder = node_package("@continuedev/openai-adapters").parents[2]
    out = run_client("node", SCRIPTS / "continue.mjs", folder, eager.url, KEY, "qwq-nano", folder=tmp_path)
    gap = greedy(nano, "def add(a, b):\n    ", suffix="\n    return total\n", max_tokens=20).texts
    assert json.loads(out) == {
        "chat": greedy(nano, "What is 12+34?").texts["answer"],
        "calls": ["read_file"],
        "gap": "".join(gap.values()),
    }


@pytest.mark.real
def test_continue_fills_a_gap_with_a_published_model(tmp_path):
    folder = node_package("@continuedev/openai-adapters").parents[2]
    model = qwq_ref.load(real_model(QWEN_05B), context=1024)
    with serving(lambda: model, key=KEY) as running:
        out = run_client("node", SCRIPTS / "continue.mjs", folder, running.url, KEY, "qwq-nano", folder=tmp_path)
    found = json.loads(out)
    assert "46" in found["chat"]
    names = {}
    exec("def add(a, b):\n    " + found["gap"].partition("\n")[0], names)
    assert names["add"](2, 3) == 5


# The context of the shipped model is a little longer than Continue's own instructions.
CONTINUE = """
name: local
version: 1.0.0
schema: v1
models:
  - name: nano
    provider: openai
    model: qwq-nano
    apiBase: {url}/v1
    apiKey: {key}
    roles: [chat]
    defaultCompletionOptions: {{contextLength: 1024, maxTokens: 30, temperature: 0}}
    requestOptions:
      extraBodyProperties: {{reasoning_effort: none}}
"""


def test_the_command_of_continue(nano, eager, tmp_path):
    program = node_package("@continuedev/cli") / "dist" / "cn.js"
    (tmp_path / "config.yaml").write_text(CONTINUE.format(url=eager.url, key=KEY))
    eager.asked.clear()
    how = ("--config", "config.yaml", "--exclude", "*", "-p", "What is 12+34?")
    out = run_client("node", program, *how, folder=tmp_path)
    ((prompt, settings),) = eager.asked
    assert [each["role"] for each in prompt] == ["system", "user"]
    assert settings["reasoning_effort"] == "none"
    assert out.strip() == greedy(nano, prompt, reasoning_effort="none", max_tokens=30).texts["answer"].strip()


@pytest.fixture
def open_webui(eager, tmp_path):
    """The address of an open-webui that asks the server, without accounts and without its own tools."""
    program = python_with("open-webui").with_name("open-webui")
    variables = {
        "OPENAI_API_BASE_URL": f"{eager.url}/v1",
        "OPENAI_API_KEY": KEY,
        "ENABLE_OLLAMA_API": "False",
        "DEFAULT_MODEL_PARAMS": '{"function_calling": "legacy"}',
        "ENABLE_TITLE_GENERATION": "False",
        "ENABLE_TAGS_GENERATION": "False",
        "ENABLE_FOLLOW_UP_GENERATION": "False",
        # For the test: no account, no network.
        **{"WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": KEY, "OFFLINE_MODE": "True", "RAG_EMBEDDING_ENGINE": "openai"},
        **{"DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    }
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or _answers(url), 300)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _answers(url):
    with contextlib.suppress(OSError):
        return "true" in fetch(f"{url}/health")
    return False


def fetch(url, token="", **body):
    """The text of a page, or of the answer to a body."""
    data = json.dumps(body).encode() if body else None
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(url, data, head), timeout=60) as answer:
        return answer.read().decode()


def test_open_webui(nano, eager, open_webui):
    token = json.loads(fetch(f"{open_webui}/api/v1/auths/signin", email="", password=""))["token"]
    listed = json.loads(fetch(f"{open_webui}/api/models", token))["data"]
    assert [each["id"] for each in listed] == ["qwq-nano"]
    messages, texts, thoughts = [], [], []
    for question in ("What is 12+34?", "And 2+2?"):
        messages.append({"role": "user", "content": question})
        body = {"model": "qwq-nano", "messages": messages, "stream": True, "params": {"temperature": 0}}
        eager.asked.clear()
        answer = fetch(f"{open_webui}/api/chat/completions", token, **body)
        lines = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        texts.append("".join(each.get("content") or "" for each in deltas))
        thoughts.append("".join(each.get("reasoning_content") or "" for each in deltas))
        ((prompt, settings),) = eager.asked
        assert (prompt, settings["temperature"]) == (messages, 0)
        messages.append({"role": "assistant", "content": texts[-1]})
    assert texts == turns(nano, "What is 12+34?", "And 2+2?")
    assert thoughts[0] == greedy(nano, "What is 12+34?").texts["thinking"]
