"""Completions through OpenAI's client, and the requests of lm-eval's `local-completions`."""

import json
import math

import numpy as np
import openai
import pytest

from tests.support.servers import request, status

TEXT = "Reverse 12+34:\n"


def ask(client, prompt=TEXT, **how):
    return client.completions.create(model="qwq-nano", prompt=prompt, **how)


def alone(model, prompt=TEXT, **how):
    generation = model.generate(prompt, raw=True, **how)
    for _ in generation:
        pass
    return generation


def log_softmax(logits):
    x = logits.astype(np.float64)
    largest = x.max(-1, keepdims=True)
    return x - (largest + np.log(np.exp(x - largest).sum(-1, keepdims=True)))


@pytest.mark.parametrize(
    "how", [{"temperature": 0, "max_tokens": 20}, {"temperature": 1.5, "seed": 4, "max_tokens": 30}]
)
def test_a_text_goes_on_with_the_bits_of_generate(client, nano, how):
    mine = alone(nano, **how)
    found = ask(client, **how)
    assert found.choices[0].text == "".join(mine.texts.values())
    assert found.usage.completion_tokens == len(mine.run.output)
    chunks = [*ask(client, stream=True, stream_options={"include_usage": True}, **how)]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == found.choices[0].text
    assert chunks[-2].choices[0].finish_reason == found.choices[0].finish_reason
    assert chunks[-1].usage == found.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


def test_without_a_number_sixteen_tokens_come(client):
    assert ask(client, temperature=0, logit_bias={str(0): -1}).usage.completion_tokens <= 16


def test_ids_and_lists_are_prompts(client, nano):
    ids = nano.tokenizer.encode(TEXT)
    how = {"temperature": 0, "max_tokens": 12}
    texts = [ask(client, one, **how).choices[0].text for one in (TEXT, "Sort 3,1,2.")]
    assert ask(client, ids, **how).choices[0].text == texts[0]
    both = ask(client, [TEXT, "Sort 3,1,2."], **how)
    assert [choice.text for choice in both.choices] == texts
    assert [choice.index for choice in both.choices] == [0, 1]
    both = ask(client, [ids, nano.tokenizer.encode("Sort 3,1,2.")], echo=True, **how)
    assert [choice.text for choice in both.choices] == [TEXT + texts[0], "Sort 3,1,2." + texts[1]]


@pytest.mark.parametrize("most", [0, 1])
@pytest.mark.parametrize("greedy_end", [False, True])
def test_loglikelihoods_as_lm_eval_reads_them(client, nano, most, greedy_end):
    """lm-eval sends ids of context and continuation, and reads `token_logprobs[len(context):-1]`, or all without -1."""
    context, rest = nano.tokenizer.encode("What is 12+34?\nReverse"), nano.tokenizer.encode(" 12+34:\n21+43")
    if greedy_end:  # a text after which the model ends at once: the last item must still be there
        generation = alone(nano, nano.tokenizer.encode(TEXT), temperature=0)
        assert generation.run.finish_reason == "stop"
        context, rest = generation.run.prompt, generation.run.output
    ids = context + rest
    found = ask(client, [ids], temperature=0, max_tokens=most, logprobs=1, seed=1234, echo=True)
    logprobs = found.choices[0].logprobs
    last = len(ids) if most == 0 else -1
    values, tops = logprobs.token_logprobs[len(context) : last], logprobs.top_logprobs[len(context) : last]
    mine = log_softmax(nano.logits(ids)[:, : nano.tokenizer.size])[len(context) - 1 : -1]
    assert values == [float(row[identity]) for row, identity in zip(mine, rest, strict=True)]
    assert [max(top.values()) for top in tops] == mine.max(-1).tolist()
    assert logprobs.token_logprobs[0] is None
    assert logprobs.tokens[: len(ids)] == [nano.tokenizer.decode([i]) for i in ids]
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    assert found.choices[0].text.startswith(nano.tokenizer.decode(ids))
    assert len(logprobs.tokens) == len(ids) + most


def test_the_prompt_is_computed_once(client, server, nano):
    ids = nano.tokenizer.encode("Reverse 77+88 and so on, for a while: " * 3)
    found = ask(client, ids, max_tokens=1, logprobs=1, echo=True)
    assert found.usage.prompt_tokens_details.cached_tokens == len(ids) - 1


def test_the_best_of_several(client, nano):
    how = {"temperature": 1.5, "max_tokens": 25}
    means = {}
    for seed in range(5, 9):
        mine = alone(nano, seed=seed, logprobs=0, **how)
        noted = [each.logprob for each in mine.run.logprobs]
        means[nano.tokenizer.decode(mine.run.output)] = sum(noted) / len(noted)
    best = sorted(means, key=means.__getitem__, reverse=True)
    found = ask(client, best_of=4, n=2, seed=5, **how)
    assert [choice.text for choice in found.choices] == best[:2]
    assert found.usage.completion_tokens > found.usage.prompt_tokens


@pytest.mark.parametrize(
    ("how", "param"),
    [
        ({"prompt": [TEXT] * 65}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1 << 40]}, "prompt"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "x", "echo": True}, "suffix"),
        ({"max_tokens": 10**6}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_errors_name_the_field(client, how, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"prompt": TEXT, "max_tokens": 1, **how})
    assert caught.value.param.startswith(param)


def test_chats_have_logprobs_of_their_answers(client, nano):
    messages = [{"role": "user", "content": "What is 12+34?"}]
    how = {"temperature": 0, "max_tokens": 60}
    mine = nano.generate("What is 12+34?", logprobs=3, **how)
    for _ in mine:
        pass
    found = client.chat.completions.create(model="qwq-nano", messages=messages, logprobs=True, top_logprobs=3, **how)
    content = found.choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in content).decode() == found.choices[0].message.content
    noted = mine.run.logprobs[-len(content) :]
    assert [each.logprob for each in content] == [each.logprob for each in noted]
    assert [[top.logprob for top in each.top_logprobs] for each in content] == [[v for _, v in e.top] for e in noted]
    assert all(math.exp(each.logprob) <= 1 for each in content)
    stream = client.chat.completions.create(
        model="qwq-nano", messages=messages, logprobs=True, top_logprobs=3, stream=True, **how
    )
    chunks = [chunk.choices[0].logprobs for chunk in stream if chunk.choices]
    assert [each for one in chunks if one for each in one.content] == content


@pytest.mark.parametrize("stream", [True, False])
def test_a_gap_that_is_written_with_its_tokens(client, nano, stream):
    """Editors that know a model's name, such as Continue, write its tokens of a gap into the prompt."""
    before, after = "def add(a, b):\n    <|im_end|>", "\n    return total\n"
    mine = nano.generate(before, suffix=after, temperature=0, max_tokens=12)
    for _ in mine:
        pass
    text = f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>"
    found = ask(client, text, temperature=0, max_tokens=12, stream=stream, stop=["<|fim_pad|>", "<|im_end|>"])
    chunks = [*found] if stream else [found]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "".join(mine.texts.values())
    found = ask(client, [text, "Sort 3,1,2."], temperature=0, max_tokens=12)
    assert found.choices[0].text == "".join(mine.texts.values())
    assert found.choices[1].text == ask(client, "Sort 3,1,2.", temperature=0, max_tokens=12).choices[0].text
    assert found.usage.prompt_tokens == len(mine.run.prompt) + len(nano.tokenizer.encode("Sort 3,1,2."))
    plain = ask(client, text, temperature=0, max_tokens=0, echo=True, logprobs=0)  # a text to score is no gap
    assert plain.usage.prompt_tokens == len(nano.tokenizer.encode(text))


def test_stop_strings_end_the_text(client):
    whole = ask(client, temperature=0, max_tokens=60).choices[0].text
    stop = whole[10:13]
    found = ask(client, temperature=0, max_tokens=60, stop=[stop, "never"])
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_a_bias_excludes_a_token(client, nano):
    first = alone(nano, temperature=0, max_tokens=1).run.output[0]
    found = ask(client, temperature=0, max_tokens=1, logprobs=0, logit_bias={str(first): -100})
    assert found.choices[0].logprobs.tokens != [nano.tokenizer.decode([first])]
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        ask(client, logit_bias={"x": 1})


def answer_of(server, path, **body):
    """The status and the text of an answer to a request without a client's package."""
    data = json.dumps(body).encode() if body else None
    answer = server.ask_raw(request(path, data))
    return status(answer), answer.partition(b"\r\n\r\n")[2].decode()


def test_texts_become_ids_and_back(server):
    def post(path, **body):
        code, text = answer_of(server, path, **body)
        assert code == 200
        return json.loads(text)

    found = post("/tokenize", content="What <|im_end|>?", with_pieces=True)
    assert "".join(each["piece"] for each in found["tokens"]) == "What <|im_end|>?"
    ids = [each["id"] for each in found["tokens"]]
    assert found["count"] == len(ids)
    assert post("/detokenize", tokens=ids)["content"] == "What <|im_end|>?"
    chat = post("/tokenize", messages=[{"role": "user", "content": "hi"}])
    assert "<|im_start|>" in post("/detokenize", tokens=chat["tokens"])["content"]
    assert answer_of(server, "/tokenize", with_pieces=True)[0] == 400
    assert answer_of(server, "/tokenize", content="a", prompt="")[0] == 400
    assert answer_of(server, "/detokenize", tokens=[10**9])[0] == 400


def test_counts_for_prometheus(server, client):
    ask(client, max_tokens=3, temperature=0)
    _, text = answer_of(server, "/metrics")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["qwq_output_tokens_total"]) >= 3
    assert float(values['qwq_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert all(line.startswith(("# HELP qwq_", "# TYPE qwq_", "qwq_")) for line in text.splitlines())


def test_the_api_describes_itself(server):
    found = json.loads(answer_of(server, "/openapi.json")[1])
    paths = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/health", "/metrics"}
    assert paths <= set(found["paths"])
    assert "temperature" in json.dumps(found["components"]["schemas"]["ChatRequest"])
