"""The options of RoPE: what they set, what they assume, and that none is ignored."""

import dataclasses
import json

import pytest

from qwq_ref.cli import main, models
from qwq_ref.cli.options import add_rope_arguments, chosen_rope
from qwq_ref.cli.parser import Parser
from qwq_ref.config import Config, Rope
from tests.support.models import config_values, yarn
from tests.support.paths import QWQ_CONFIG

QWQ = Config.from_file(QWQ_CONFIG)
ASSUMED = "qwq: --yarn-orig-ctx {} is assumed, because config.json does not tell the context length in training\n"


def chosen(arguments, config):
    parser = Parser()
    add_rope_arguments(parser)
    return chosen_rope(parser.parse_args(arguments.split()), config)


@pytest.mark.parametrize(
    ("arguments", "factor", "original", "assumed"),
    [
        ("", 4.0, 32768, True),
        ("--rope-scale 2", 2.0, 32768, True),
        ("--rope-scale 1", 1.0, 32768, True),
        ("--yarn-orig-ctx 8192", 4.0, 8192, False),
        ("--rope-scale 3 --yarn-orig-ctx 40960", 3.0, 40960, False),
    ],
)
@pytest.mark.parametrize("positions", [40960, 131072])
def test_yarn_of_qwq(arguments, factor, original, assumed, positions, capsys):
    """At both lengths that its config.json has had, QwQ-32B was trained on 32,768 positions."""
    config = dataclasses.replace(QWQ, max_position_embeddings=positions)
    rope = chosen(f"--rope-scaling yarn {arguments}", config)
    assert rope == Rope(theta=1e6, type="yarn", factor=factor, original_max_position_embeddings=original)
    assert capsys.readouterr().err == (ASSUMED.format(original) if assumed else "")


def test_a_short_model_is_not_assumed_to_be_long(capsys):
    rope = chosen("--rope-scaling yarn", dataclasses.replace(QWQ, max_position_embeddings=1024))
    assert rope.original_max_position_embeddings == 1024
    assert capsys.readouterr().err == ASSUMED.format(1024)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("", {}),
        ("--rope-scale 8", {"factor": 8.0}),
        ("--yarn-orig-ctx 32", {"original_max_position_embeddings": 32}),
    ],
)
def test_what_the_config_says_of_yarn_stays(arguments, changes, capsys):
    own = yarn(factor=2.0, attention_factor=1.5, beta_fast=20.0, truncate=False)
    config = Config.from_dict(config_values(rope_scaling=own))
    assert chosen(f"--rope-scaling yarn {arguments}", config) == dataclasses.replace(config.rope, **changes)
    assert chosen("--rope-scaling none", config) == Rope(theta=config.rope.theta)
    assert chosen("", config) is None
    assert capsys.readouterr().err == ""


RECORD = "golden record -o OUT --ids 1,2"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("info qwq-32b --rope-scale 2", "--rope-scale: needs --rope-scaling yarn"),
        ("info qwq-32b --rope-scale 4", "--rope-scale: needs --rope-scaling yarn"),  # the default, typed
        ("info qwq-32b --yarn-orig-ctx 32768", "--yarn-orig-ctx: needs --rope-scaling yarn"),
        ("info qwq-32b --rope-scaling none --rope-scale 2", "--rope-scale: needs --rope-scaling yarn"),
        ("generate x -n 1 --rope-scale 2", "--rope-scale: needs --rope-scaling yarn"),
        (f"{RECORD} --yarn-orig-ctx 9", "--yarn-orig-ctx: needs --rope-scaling yarn"),
        ("bench -p 1 -n 0 --rope-scale 2", "--rope-scale: needs --rope-scaling yarn"),
        ("bench --op argmax --rope-scaling yarn", "--rope-scaling: has no effect with --op"),
        ("bench --op --rope-scale 2", "--rope-scale: has no effect with --op"),
        ("info qwq-32b --rope-scaling yarn --rope-scale 0.5", "--rope-scale: must be at least 1, got 0.5"),
        ("info qwq-32b --rope-scaling yarn --rope-scale 1e99", "--rope-scale: must be at most 65536, got 1e+99"),
        ("info qwq-32b --rope-scaling yarn --yarn-orig-ctx 0", "--yarn-orig-ctx: must be at least 1, got 0"),
        (f"info qwq-32b --rope-scaling yarn --yarn-orig-ctx {10**15}", "--yarn-orig-ctx: must be at most 67108864"),
        ("info qwq-32b --rope-scaling linear", "--rope-scaling: must be one of none, yarn, got linear"),
    ],
)
def test_an_option_without_effect_is_refused(arguments, problem, tmp_path, capsys):
    assert main([part.replace("OUT", str(tmp_path / "pack")) for part in arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"qwq: {problem}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["info MODEL", "generate x -m MODEL", f"{RECORD} -m MODEL", "bench -m MODEL"])
def test_no_model_is_looked_for_first(command, capsys, monkeypatch, tmp_path):
    """It could be a download."""
    monkeypatch.setattr("qwq_ref.formats.resolve", lambda *a, **k: pytest.fail("a model was looked for"))
    monkeypatch.setattr(models, "resolve", lambda *a, **k: pytest.fail("a model was looked for"))
    words = command.replace("MODEL", "owner/name").replace("OUT", str(tmp_path / "pack"))
    assert main([*words.split(), "--rope-scale", "2"]) == 2
    assert capsys.readouterr().err == "qwq: --rope-scale: needs --rope-scaling yarn\n"


def test_info_says_what_yarn_starts_from(capsys):
    assert main(["info", "qwq-32b", "--rope-scaling", "yarn"]) == 0
    out, err = capsys.readouterr()
    assert "YaRN x 4 from 32,768, 131,072 positions" in out
    assert err == ASSUMED.format(32768)
    assert main(["info", "qwq-32b", "--rope-scaling", "yarn", "--yarn-orig-ctx", "32768", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = json.loads(out)
    assert facts["positions"] == 131_072
    assert (facts["rope"]["type"], facts["rope"]["factor"], facts["rope"]["theta"]) == ("yarn", 4.0, 1e6)
