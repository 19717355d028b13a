"""The chat templates of a GGUF file give the prompts that the folder of the same model gives."""

import json

import pytest

from qwq_ref.errors import CheckpointError, TemplateError
from qwq_ref.formats.gguf import read_header
from qwq_ref.text import load_chat_template, load_tokenizer
from tests.support.conversations import CONVERSATIONS, TOOL, USER
from tests.support.gguf_text import TOKENS, TYPES, UNUSED, metadata, write
from tests.support.real_models import QWEN_05B, R1_7B_HEAD, real_model
from tests.support.small_tokenizer import ADDED, SIZE, TEMPLATE, VALUES

FIRST = SIZE - len(ADDED)  # the id of <|endoftext|>, which stands for BOS here
ROLES = {"ggml__bos_token_id": FIRST, "ggml__eos_token_id": FIRST + 2, "ggml__padding_token_id": FIRST}


def small_file(path, **changes):
    return write(path, metadata(VALUES, SIZE + 9, **ROLES | changes))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_prompt_equals_that_of_transformers(tmp_path, small_hf, name):
    file = small_file(tmp_path / "x.gguf", chat_template=TEMPLATE)
    template, tokenizer = load_chat_template(file), load_tokenizer(file)
    assert (template.source, template.file) == (TEMPLATE, file)
    messages, tools = CONVERSATIONS[name]
    for generation in (True, False):
        arguments = {"tools": tools, "add_generation_prompt": generation, "chat_template": TEMPLATE}
        assert template.encode(tokenizer, messages, tools, generation) == small_hf.apply_chat_template(
            messages, tokenize=True, return_dict=False, **arguments
        )


def test_a_file_without_a_template(tmp_path):
    assert load_chat_template(small_file(tmp_path / "x.gguf")) is None
    assert load_chat_template(write(tmp_path / "y.gguf", {"general.architecture": "qwen2"})) is None


def test_a_template_of_several(tmp_path):
    """As the package gguf writes a list of named templates."""
    several = {"chat_template": "D", "chat_templates": ["rag", "tool_use"], "chat_template__tool_use": "T"}
    template = load_chat_template(small_file(tmp_path / "x.gguf", **several, chat_template__rag="R"))
    assert [template.render([USER], tools) for tools in (None, [TOOL])] == ["D", "T"]
    template = load_chat_template(small_file(tmp_path / "y.gguf", chat_template__default="D"))
    assert [template.render([USER], tools) for tools in (None, [TOOL])] == ["D", "D"]


def test_the_package_gguf_writes_what_is_read(tmp_path):
    gguf = pytest.importorskip("gguf", reason="writes the header of a GGUF file: pip install 'qwq_ref[bench]'")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_chat_template([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    template = load_chat_template(tmp_path / "x.gguf")
    assert [template.render([USER], tools) for tools in (None, [TOOL])] == ["D", "T"]


def test_the_variables_of_a_template(tmp_path):
    source = "{{ bos_token }} {{ eos_token }} {{ pad_token }} {{ eot_token }} {{ unk_token is defined }}"
    template = load_chat_template(small_file(tmp_path / "x.gguf", chat_template=source, ggml__eot_token_id=FIRST + 3))
    assert template.render([USER]) == "<|endoftext|> <|im_end|> <|endoftext|> <|object_ref_start|> False"
    fields = metadata(VALUES, SIZE + 9, chat_template="{{ bos_token is defined }}", ggml__bos_token_id=FIRST)
    fields[TYPES][FIRST] = UNUSED
    assert load_chat_template(write(tmp_path / "y.gguf", fields)).render([USER]) == "False"


def test_a_file_of_the_user_takes_the_place_of_the_template(tmp_path):
    (tmp_path / "mine.jinja").write_text("mine {{ eos_token }}")
    for changes in ({}, {"chat_template": "D", "chat_template__tool_use": "T"}):
        template = load_chat_template(small_file(tmp_path / "x.gguf", **changes), tmp_path / "mine.jinja")
        assert [template.render([USER], tools) for tools in (None, [TOOL])] == ["mine <|im_end|>"] * 2


def test_the_path_tells_which_template_is_read(tmp_path):
    file = small_file(tmp_path / "model.gguf", chat_template="of the file")
    (tmp_path / "chat_template.jinja").write_text("of the folder")
    assert load_chat_template(file).render([USER]) == "of the file"
    assert load_chat_template(tmp_path).render([USER]) == "of the folder"
    assert load_chat_template(str(file.rename(tmp_path / "sha256-0"))).render([USER]) == "of the file"


# --- BOS --------------------------------------------------------------------------------------------------------------

WRITES_BOS = "{{ bos_token }}{{ messages[0].content }}"


@pytest.mark.parametrize("source", [WRITES_BOS, "{{ messages[0].content }}"], ids=["written", "not written"])
@pytest.mark.parametrize("adds", [True, False, None])
def test_a_prompt_has_one_bos(tmp_path, small, source, adds):
    file = small_file(tmp_path / "x.gguf", chat_template=source, ggml__add_bos_token=adds)
    ids = load_chat_template(file).encode(load_tokenizer(file), [{"role": "user", "content": "Hello"}])
    has_bos = adds or source == WRITES_BOS
    assert ids == [FIRST] * bool(has_bos) + small.encode("Hello")


def test_a_user_cannot_write_the_bos(tmp_path, small):
    file = small_file(tmp_path / "x.gguf", chat_template="{{ messages[0].content }}", ggml__add_bos_token=True)
    ids = load_chat_template(file).encode(load_tokenizer(file), [{"role": "user", "content": "<|endoftext|>"}])
    assert ids == [FIRST, *small.encode("<|endoftext|>")]


def test_an_empty_prompt_stays_an_error(tmp_path):
    file = small_file(tmp_path / "x.gguf", chat_template="{# nothing #}", ggml__add_bos_token=True)
    with pytest.raises(TemplateError, match="makes an empty prompt"):
        load_chat_template(file).encode(load_tokenizer(file), [USER])


# --- Bad metadata -----------------------------------------------------------------------------------------------------

BAD = {
    "number": ({"chat_template": 5}, "tokenizer.chat_template: must be a text"),
    "list": ({"chat_template": ["D"]}, "tokenizer.chat_template: must be a text"),
    "empty": ({"chat_template": " \n"}, "tokenizer.chat_template: holds an empty chat template"),
    "long": (
        {"chat_template": "x" * 70_000},
        "tokenizer.chat_template: is 70,000 characters long; at most 65,536 are read",
    ),
    "not UTF-8": ({"chat_template": b"caf\xe9"}, "tokenizer.chat_template: "),
    "a lone surrogate": ({"chat_template": b"\xed\xa0\x80"}, "tokenizer.chat_template: "),
    "tools alone": (
        {"chat_template__tool_use": "T"},
        "tokenizer.chat_template: is missing beside tokenizer.chat_template.tool_use",
    ),
    "tools a number": ({"chat_template": "D", "chat_template__tool_use": 5}, "chat_template.tool_use: must be a text"),
    "tools empty": ({"chat_template": "D", "chat_template__tool_use": ""}, "chat_template.tool_use: holds an empty"),
    "tools named alone": (
        {"chat_template": "D", "chat_templates": ["tool_use"]},
        "tokenizer.chat_template.tool_use: is missing, although tokenizer.chat_templates names it",
    ),
    "names a text": ({"chat_template": "D", "chat_templates": "tool_use"}, "chat_templates: must be an array of str"),
    "names numbers": ({"chat_template": "D", "chat_templates": [1]}, "chat_templates: must be an array of strings"),
    "bos beyond": ({"chat_template": "D", "ggml__bos_token_id": SIZE + 9}, "ggml.bos_token_id: is "),
    "tokens numbers": ({"chat_template": "D", "ggml__tokens": [1]}, "ggml.tokens: must be an array of strings"),
    "too few types": ({"chat_template": "D", "ggml__token_type": [1]}, "ggml.token_type: has 1 elements; tokens has"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata(tmp_path, case):
    changes, wanted = BAD[case]
    file = small_file(tmp_path / "x.gguf", **changes)
    with pytest.raises((TemplateError, CheckpointError)) as caught:
        load_chat_template(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: tokenizer.")
    assert wanted in message
    assert message.isprintable()


def test_a_template_that_does_not_compile(tmp_path):
    file = small_file(tmp_path / "x.gguf", chat_template="{% if %}")
    with pytest.raises(TemplateError, match=r"x\.gguf: line 1: "):
        load_chat_template(file).check()


# --- Real files -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_prompts_of_qwq(tmp_path, real, real_folder, real_hf, name):
    """QwQ's tokenizer_config.json as fields of a GGUF file."""
    source = json.loads((real_folder / "tokenizer_config.json").read_text())["chat_template"]
    file = write(tmp_path / "x.gguf", {"tokenizer.chat_template": source})
    messages, tools = CONVERSATIONS[name]
    wanted = real_hf.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    assert load_chat_template(file).encode(real, messages, tools) == wanted


@pytest.fixture(scope="module")
def r1(tmp_path_factory, shared_data):
    """R1-Distill's GGUF file, and transformers with the files that it was made from."""
    from transformers import AutoTokenizer

    file, folder = real_model(R1_7B_HEAD), tmp_path_factory.mktemp("r1")
    fields = read_header(file, whole=False).fields
    ours = load_tokenizer(file, 152064)
    values = json.loads((shared_data / "qwq-32b" / "tokenizer.json").read_text())
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = [
        {"id": identity, "content": token, "special": identity in ours.special, **flags}
        for token, identity in ours.added.items()
    ]
    tokens = fields[TOKENS].strings()
    assert [*values["model"]["vocab"]] == tokens[: len(values["model"]["vocab"])]
    configuration = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "chat_template": fields["tokenizer.chat_template"],
    }
    contents = {"tokenizer": {**values, "added_tokens": added}, "config": {"model_type": "qwen2"}}
    for name, content in (contents | {"tokenizer_config": configuration}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return file, ours, AutoTokenizer.from_pretrained(folder)


TURNS = [USER, {"role": "assistant", "content": "<think>\nSo.\n</think>\n\n4"}, {"role": "user", "content": "And 3?"}]


@pytest.mark.real
@pytest.mark.shared
@pytest.mark.parametrize("messages", [[USER], TURNS, [{"role": "system", "content": "Be brief."}, *TURNS]])
def test_the_prompts_of_r1_distill_have_one_bos(r1, messages):
    file, ours, theirs = r1
    ids = load_chat_template(file).encode(ours, messages)
    assert ids == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert (ids[0], ids.count(151646)) == (151646, 1)


@pytest.mark.real
@pytest.mark.shared
def test_an_edited_template_of_r1_distill_has_one_bos(r1, tmp_path):
    """Some publishers take the BOS out of the template, because llama.cpp adds one."""
    file, ours, theirs = r1
    edited = load_chat_template(file).source.replace("{{bos_token}}", "")
    (tmp_path / "edited.jinja").write_text(edited)
    wanted = theirs.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert load_chat_template(file, tmp_path / "edited.jinja").encode(ours, [USER]) == wanted


@pytest.mark.real
def test_the_template_of_a_real_file():
    file = real_model(QWEN_05B)
    template, tokenizer = load_chat_template(file), load_tokenizer(file)
    assert template.variables == dict.fromkeys(("bos_token", "pad_token"), "<|endoftext|>") | {
        "eos_token": "<|im_end|>"
    }
    ids = template.encode(tokenizer, [{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids, skip_special=False) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.turn_end(tokenizer) == 151645
