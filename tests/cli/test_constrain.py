"""`qwq generate` with a JSON schema, a grammar, or a gap to fill."""

import json
import re

import pytest

from qwq_ref.cli import main
from qwq_ref.engine.model import Model

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}
ASK = ["generate", "-m", "qwq-nano", "-p", "What is 12+34?", "-n", "200", "--seed", "1"]


@pytest.mark.parametrize("option", ["-j", "--json-schema", "--json-schema-file", "-jf", "--json_schema"])
def test_an_answer_under_a_schema(tmp_path, capsys, option):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for value in (json.dumps(SCHEMA), str(file)):
        assert main([*ASK, option, value]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer) == {"sum"}


def test_an_answer_under_a_grammar_and_as_json(tmp_path, capsys):
    file = tmp_path / "g.gbnf"
    file.write_text('root ::= "sum: " [0-9]{1,4}\n')
    for given in (["--grammar", file.read_text()], ["--grammar-file", str(file)]):
        assert main([*ASK, *given]) == 0
        assert re.fullmatch(r"sum: [0-9]{1,4}\n", capsys.readouterr().out)
    assert main([*ASK, "--json", "--grammar-file", str(file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finish_reason"] == "stop"
    assert told["thinking"]


def test_many_prompts_under_a_schema(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 1+2?\nWhat is 3+4?\n")
    assert main(["generate", "--prompts", str(prompts), "-n", "200", "-j", json.dumps(SCHEMA), "--seed", "2"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert set(json.loads(json.loads(line)["answer"])) == {"sum"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["-j", "{oops"], "qwq: -j/--json-schema: is not JSON (line 1, column 2)"),
        (["--json-schema", '{"type": "objct"}'], "qwq: --json-schema: Invalid type: objct"),
        (["-j", '{"not": {}}'], 'qwq: -j/--json-schema: Unimplemented keys: ["not"]'),
        (["-j", "false"], "qwq: -j/--json-schema: is false, which no value fits"),
        (["-j", "/nowhere/schema.json"], "qwq: /nowhere/schema.json: cannot be read (No such file or directory)"),
        (["-j", ""], "qwq: -j/--json-schema: is empty"),
        (["--grammar", "root ::= a"], "qwq: --grammar: "),
        (["--grammar-file", "/nowhere"], "qwq: /nowhere: cannot be read"),
        (["-j", "{}", "--grammar", "x"], "qwq: --grammar: does not go together with -j/--json-schema"),
        (["-j", "{}", "--suffix", "x"], "qwq: -j/--json-schema: does not go together with --suffix"),
        (["--system", "x", "--suffix", "x"], "qwq: --system: has no effect with --suffix"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_loaded(capsys, monkeypatch, given, says):
    monkeypatch.setattr(Model, "__init__", None)
    assert main([*ASK, *given]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_a_file_that_is_no_json_is_named(tmp_path, capsys):
    file = tmp_path / "schema.json"
    file.write_text("{\n  oops\n}")
    assert main([*ASK, "-j", str(file)]) == 2
    assert f"{file}: " in (err := capsys.readouterr().err)
    assert "is not JSON (line 2, column 3)" in err


def test_a_gap_is_filled(capsys, monkeypatch):
    asked = {}
    prompt_ids = Model.prompt_ids

    def seen(self, *arguments):
        asked["ids"] = prompt_ids(self, *arguments)
        asked["tokenizer"] = self.tokenizer
        return asked["ids"]

    monkeypatch.setattr(Model, "prompt_ids", seen)
    assert main(["generate", "-p", "a <|im_end|>", "--suffix", " b", "-n", "3", "--temp", "0"]) == 0
    tokenizer = asked["tokenizer"]
    published = [
        *tokenizer.encode("<|fim_prefix|>", special=True),
        *tokenizer.encode("a <|im_end|>"),
        *tokenizer.encode("<|fim_suffix|>", special=True),
        *tokenizer.encode(" b"),
        *tokenizer.encode("<|fim_middle|>", special=True),
    ]
    assert asked["ids"] == published
    assert main(["generate", "-p", "a", "--suffix", "", "-n", "1"]) == 0
