"""A small tokenizer and chat template of QwQ's kind, the real ones, and Hugging Face's classes around both."""

import json

import pytest
from hypothesis import strategies as st

from qwq_ref.text import load_tokenizer
from qwq_ref.train.tokenizer import NOT_SPECIAL, SPECIAL, train_tokenizer

ADDED = [*SPECIAL, *NOT_SPECIAL]
SENTENCES = [
    "Okay, so I need to find how many eggs Janet's ducks lay. She sells 16 - 3 - 4 = 9 eggs, so it's $18 a day.",
    "Wait, let me check that again: we'll say they've 2/3 of it, don't they?\n\nYes, that's right.\n",
    "<think>the thinking thinks; </think>im_start user assistant system tool_call name arguments",
    "日本語と中文字符，数字 １２３ и кириллица, naïve café 😀👩‍👩‍👧",
]


VALUES = train_tokenizer(SENTENCES * 3, 400 + len(ADDED))
SIZE = len(VALUES["model"]["vocab"]) + len(ADDED)

# QwQ's template in outline: the tools, the reasoning cut from earlier turns, tool calls, the opened <think>.
TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') + '\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' ~ (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools> in <tool_call></tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if not loop.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""

# Text that has broken tokenizers before: combining marks out of order, texts that NFC changes, joiners, digits of other
# scripts, line ends, NULs, long runs, private use, and what looks like an added token.
PIECES = [
    *ADDED,
    *("<|im_end|", "|>", "<", ">", "<think", "</", "<<think>think>", "<|im_<|im_end|>end|>", "<THINK>", "＜think＞"),
    *("e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u1100\u1161\u11a8", "\u212b", "\u0344", "\ufb01", "\u2126"),
    *("👩‍👩‍👧", "🏳️‍🌈", "🇩🇪", "日本語", "한국어", "٣٤٥", "१२३", "１２", "²½", "\u200d", "\u202e", "\ufeff"),
    *("\r\n", "\r", "\n\n", "\0", "\t", "\x85", "\u2028", "\u3000", " " * 300, "\n" * 50, " \n ", "'S", "'ll", "’t"),
    *("\ue000", "\U000f0000", "\U0010ffff", "\ufffd", "Ġ", "Ċ", "16", "don't", " a"),
]
CHARS = st.characters(exclude_categories=("Cs",))
TEXT = st.lists(st.sampled_from(PIECES) | st.text(CHARS, max_size=8), max_size=12).map("".join)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small_tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(VALUES))
    (folder / "plain.json").write_text(json.dumps({**VALUES, "added_tokens": []}))
    return folder


@pytest.fixture(scope="session")
def small(folder):
    return load_tokenizer(folder, SIZE)


@pytest.fixture(scope="session")
def small_hf(folder):
    return hugging_face(folder / "tokenizer.json")


@pytest.fixture(scope="session")
def small_plain_hf(folder):
    return hugging_face(folder / "plain.json")


def hugging_face(file, **more):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(file), **more)


@pytest.fixture(scope="session")
def real_folder(shared_data):
    return shared_data / "qwq-32b"


@pytest.fixture(scope="session")
def real(real_folder):
    return load_tokenizer(real_folder, 152064)


@pytest.fixture(scope="session")
def real_hf(real_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def real_plain_hf(real_folder, tmp_path_factory):
    values = json.loads((real_folder / "tokenizer.json").read_text())
    file = tmp_path_factory.mktemp("plain") / "tokenizer.json"
    file.write_text(json.dumps({**values, "added_tokens": []}))
    return hugging_face(file)
