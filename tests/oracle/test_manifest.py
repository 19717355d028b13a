"""Manifests: they fit the schema, and broken ones are refused."""

import json
import os
import re
import shutil

import pytest
from hypothesis import given, settings

from qwq_ref import oracle
from qwq_ref.config import Config
from qwq_ref.oracle import Golden
from qwq_ref.oracle.packs.record import record
from qwq_ref.oracle.packs.sizes import SIZES
from tests.support.models import (
    configs,
    random_weights,
)
from tests.support.packs import (
    GONE,
    QROPE,
    changed,
    refused,
    validator,
)


@pytest.mark.parametrize("name", oracle.conformance())
def test_shipped_packs_fit_the_schema(schema, name):
    schema.validate(json.loads((oracle.path(name) / "manifest.json").read_text()))


@pytest.mark.parametrize("size", SIZES)
def test_new_packs_fit_the_schema(schema, reduced, size):
    schema.validate(json.loads((reduced[size] / "manifest.json").read_text()))


@settings(max_examples=settings.default.max_examples // 6)
@given(configs())
def test_packs_of_any_config_fit_the_schema(schema, tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("packs")
    config = Config.from_dict(values)
    record(config, random_weights(config, 0), folder / "pack", [1, 2, 3], 1, sizes={"lm_head": "last", "*": "stats"})
    values = json.loads((folder / "pack" / "manifest.json").read_text())
    schema.validate(values)
    with Golden.open(folder / "pack") as golden:
        assert golden.manifest.config == config
        assert golden.manifest.to_dict() == values
    shutil.rmtree(folder)


P0, R0 = ("phases", 0), ("rounding", "prompt", "lm_head")
GGUF = {"kind": "gguf", "types": {"Q4_K": 1}}
NAMES = ["../prompt.safetensors", "/prompt.safetensors", "a/b.safetensors", "a\\b.safetensors", "a\0.safetensors", ""]
# Case: (where, value, who refuses it: reader, schema or both; the reader's field and words)
MANIFESTS = {
    "no format": (("format",), GONE, "both", "format", "must be qwq-golden, got None"),
    "another format": (("format",), "gguf", "both", "format", "must be qwq-golden, got gguf"),
    "vectors": (("format",), "qwq-vectors", "both", "format", "must be qwq-golden"),
    "format is a list": (("format",), ["qwq-golden"], "both", "format", "must be qwq-golden"),
    "no version": (("version",), GONE, "both", "version", "must be MAJOR.MINOR, got None"),
    "version 2.0": (("version",), "2.0", "both", "version", "is 2.0; this reader knows 1.x"),
    "version 0.9": (("version",), "0.9", "both", "version", "this reader knows 1.x"),
    "version 10.0": (("version",), "10.0", "both", "version", "this reader knows 1.x"),
    "version is a number": (("version",), 1.0, "both", "version", "must be MAJOR.MINOR"),
    "version of one part": (("version",), "1", "both", "version", "must be MAJOR.MINOR, got 1"),
    "version of three parts": (("version",), "1.0.0", "both", "version", "must be MAJOR.MINOR"),
    "version of other digits": (("version",), "1.٣", "both", "version", "must be MAJOR.MINOR"),
    "version with a line end": (("version",), "1.0\n", "reader", "version", "must be MAJOR.MINOR"),
    "version with a sign": (("version",), "1.-1", "both", "version", "must be MAJOR.MINOR"),
    "version of many digits": (("version",), "1." + "9" * 5000, "both", "version", "must be MAJOR.MINOR"),
    "no maker": (("made_by",), GONE, "schema", None, None),
    "no model": (("model",), GONE, "both", "model", "must be an object, got None"),
    "model is a list": (("model",), [], "both", "model", "must be an object"),
    "no name": (("model", "name"), GONE, "schema", None, None),
    "no config": (("model", "config"), GONE, "both", "model.config", "must be an object"),
    "another model": (("model", "config", "model_type"), "llama", "both", "model.config.model_type", "must be 'qwen2'"),
    "no layers": (("model", "config", "num_hidden_layers"), 0, "both", "model.config.num_hidden_layers", "must be 1"),
    "a huge width": (("model", "config", "hidden_size"), 10**30, "reader", "model.config.hidden_size", "must be 1 to"),
    "a width of text": (("model", "config", "hidden_size"), "12", "both", "model.config.hidden_size", "an integer"),
    "an odd head": (("model", "config", "head_dim"), 5, "both", "model.config.head_dim", "is odd"),
    "eps 0": (("model", "config", "rms_norm_eps"), 0, "both", "model.config.rms_norm_eps", "positive"),
    "theta 1": (("model", "config", "rope_theta"), 1, "both", "model.config.rope_theta", "must be > 1"),
    "heads that do not divide": (
        ("model", "config", "num_key_value_heads"),
        3,
        "reader",
        "model.config.num_key_value_heads",
        "does not divide",
    ),
    "a layer more than there is": (
        ("model", "config", "num_hidden_layers"),
        3,
        "reader",
        "weights.model.layers.2.input_layernorm.weight",
        "must be a string",
    ),
    "a layer less than there is": (
        ("model", "config", "num_hidden_layers"),
        1,
        "reader",
        "taps.model.layers.1.resid_pre",
        "is no tap of this config",
    ),
    "a vocabulary that is too small": (
        ("model", "config", "vocab_size"),
        9,
        "reader",
        "token_ids",
        "below vocab_size 9",
    ),
    "a source of text": (("model", "source"), "gguf", "both", "model.source", "must be an object, got gguf"),
    "a source of no kind": (("model", "source"), {"types": {"Q4_K": 1}}, "both", "model.source.kind", "a string"),
    "a kind of two words": (("model", "source"), GGUF | {"kind": "g g"}, "both", "model.source.kind", "must be lower-"),
    "no types": (("model", "source"), {"kind": "gguf", "types": {}}, "both", "model.source.types", "is empty"),
    "a type without a name": (("model", "source"), GGUF | {"types": {"": 1}}, "both", "model.source.types", "letters"),
    "a true count": (
        ("model", "source"),
        GGUF | {"types": {"Q4": True}},
        "both",
        "model.source.types.Q4",
        "an integer",
    ),
    "none of a type": (("model", "source"), GGUF | {"types": {"Q4": 0}}, "both", "model.source.types.Q4", "at least 1"),
    "no frequencies": (("rope", "inv_freq_bits"), GONE, "schema", None, None),
    "frequencies as numbers": (("rope", "inv_freq_bits"), [1.0, 0.1], "schema", None, None),
    "frequencies of seven digits": (("rope", "inv_freq_bits", 0), "3f80000", "schema", None, None),
    "no scaling": (("rope", "attention_scaling"), 0, "schema", None, None),
    "no rope": (("rope",), GONE, "schema", None, None),
    "no tokens": (("token_ids",), [], "both", "token_ids", "must be a list of token ids below vocab_size 31"),
    "tokens are text": (("token_ids",), "abc", "both", "token_ids", "must be a list, got abc"),
    "a token too large": (("token_ids", 2), 31, "reader", "token_ids", "below vocab_size 31"),
    "a negative token": (("token_ids", 2), -1, "both", "token_ids", "below vocab_size"),
    "half a token": (("token_ids", 2), 1.5, "both", "token_ids", "must be a list of token ids"),
    "a token that is true": (("token_ids", 2), True, "both", "token_ids", "must be a list of token ids"),
    "a huge token": (("token_ids", 2), 10**300, "reader", "token_ids", "below vocab_size"),
    "a token more": (("token_ids", 7), 1, "reader", "phases", "cover 7 of 8 token_ids"),
    "a token less": (("token_ids", 6), GONE, "reader", "phases[2].tokens", "is 1, of 6 token_ids that begin at 6"),
    "no phases": (("phases",), [], "both", "phases", "cover 0 of 7"),
    "phases are an object": (("phases",), {}, "both", "phases", "must be a list"),
    "a phase less": (("phases", 2), GONE, "reader", "phases", "cover 6 of 7 token_ids"),
    "a phase is a name": (("phases", 0), "prompt", "both", "phases[0]", "must be an object"),
    "a phase without a name": ((*P0, "name"), GONE, "both", "phases[0].name", "must be a string"),
    "a phase twice": (("phases", 2, "name"), "decode-0", "reader", "phases[2].name", "decode-0 is used twice"),
    "a phase that climbs": ((*P0, "name"), "../x", "both", "phases[0].name", "must be letters, digits"),
    "a phase of two lines": ((*P0, "name"), "prompt\n", "reader", "phases[0].name", "must be letters, digits"),
    "a phase without letters": ((*P0, "name"), "", "both", "phases[0].name", "must be letters, digits"),
    "a phase by a long name": ((*P0, "name"), "p" * 65, "both", "phases[0].name", "must be letters, digits"),
    "phases that overlap": (("phases", 1, "start"), 4, "reader", "phases[1].start", "must be 5"),
    "phases with a hole": (("phases", 1, "start"), 6, "reader", "phases[1].start", "must be 5"),
    "a prompt that starts late": (("phases", 0, "start"), 1, "reader", "phases[0].start", "must be 0"),
    "a start of text": (("phases", 1, "start"), "5", "both", "phases[1].start", "must be an integer"),
    "a phase without tokens": (("phases", 1, "tokens"), 0, "both", "phases[1].tokens", "is 0, of 7"),
    "a phase of negative length": (("phases", 0, "tokens"), -1, "both", "phases[0].tokens", "is -1"),
    "a phase too long": (("phases", 2, "tokens"), 2, "reader", "phases[2].tokens", "is 2, of 7 token_ids"),
    "a phase of huge length": (("phases", 0, "tokens"), 10**40, "reader", "phases[0].tokens", "of 7 token_ids"),
    "true tokens": (("phases", 1, "tokens"), True, "both", "phases[1].tokens", "must be an integer"),
    "half a phase": (("phases", 0, "tokens"), 4.5, "both", "phases[0].tokens", "must be an integer"),
    "another kind of file": ((*P0, "file"), "prompt.npz", "both", "phases[0].file", "must be the name of a"),
    "a file that is no name": ((*P0, "file"), 1, "both", "phases[0].file", "must be a string"),
    "a file twice": (
        ("phases", 2, "file"),
        "decode-0.safetensors",
        "reader",
        "phases[2].file",
        "decode-0.safetensors is used twice",
    ),
    "a short digest": ((*P0, "sha256"), "00", "both", "phases[0].sha256", "must be a SHA-256"),
    "a digest in capitals": ((*P0, "sha256"), "A" * 64, "both", "phases[0].sha256", "must be a SHA-256"),
    "no digest": ((*P0, "sha256"), GONE, "both", "phases[0].sha256", "must be a string"),
    "no taps": (("taps",), GONE, "both", "taps", "must be an object"),
    "nothing kept": (("taps",), {}, "both", "taps", "is empty"),
    "taps are a list": (("taps",), ["lm_head"], "both", "taps", "must be an object"),
    "an unknown tap": (("taps", "lm_haed"), "full", "both", "taps.lm_haed", "is no tap of this config"),
    "a tap of no layer": (
        ("taps", "model.layers.2.resid_pre"),
        "full",
        "reader",
        "taps.model.layers.2.resid_pre",
        "no tap",
    ),
    "a layer with a zero": (
        ("taps", "model.layers.01.resid_pre"),
        "full",
        "both",
        "taps.model.layers.01.resid_pre",
        "no tap",
    ),
    "an unknown size": (
        ("taps", "lm_head"),
        "half",
        "both",
        "taps.lm_head",
        "one of full, last, stats, sketch, got half",
    ),
    "a size of a list": (("taps", "lm_head"), ["full"], "both", "taps.lm_head", "must be one of"),
    "no rounding": (("rounding",), GONE, "both", "rounding", "must be an object"),
    "no rounding of a phase": (("rounding", "decode-1"), GONE, "reader", "rounding.decode-1", "must be an object"),
    "no rounding of a tap": (R0, GONE, "reader", "rounding.prompt.lm_head", "must be an object, got None"),
    "no rounding in a precision": ((*R0, "bf16"), GONE, "both", "rounding.prompt.lm_head.bf16", "got nothing"),
    "negative rounding": ((*R0, "bf16"), -1e-9, "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "rounding of text": ((*R0, "bf16"), "1", "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "true rounding": ((*R0, "bf16"), True, "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "huge rounding": ((*R0, "bf16"), 1e300, "both", "rounding.prompt.lm_head.bf16", "must be a number >= 0"),
    "rounding of 400 digits": ((*R0, "bf16"), 10**400, "both", "rounding.prompt.lm_head.bf16", "must be a number"),
    "no weights": (("weights",), GONE, "both", "weights", "must be an object"),
    "a weight missing": (
        ("weights", "model.norm.weight"),
        GONE,
        "reader",
        "weights.model.norm.weight",
        "must be a string",
    ),
    "a weight's number": (("weights", "model.norm.weight"), 7, "both", "weights.model.norm.weight", "must be a string"),
    "a weight's digest": (("weights", "model.norm.weight"), "x" * 64, "both", "weights.model.norm.weight", "a SHA-256"),
}


for name in NAMES:
    words = "must be the name of a .safetensors file"
    MANIFESTS[f"file {name!r}"] = ((*P0, "file"), name, "both", "phases[0].file", words)


for name in ("../model", "/etc", "a/b", "a\\b", "a\0", "", ".", "..", 5, ["model"]):
    MANIFESTS[f"folder {name!r}"] = (("model", "folder"), name, "both", "model.folder", "must be the name of a folder")


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_broken_manifest(pack, schema, case):
    where, value, who, field, words = MANIFESTS[case]
    file = pack / "manifest.json"
    values = changed(json.loads(file.read_text()), where, value)
    file.write_text(json.dumps(values))
    assert schema.is_valid(values) == (who == "reader")
    if who == "schema":
        Golden.open(pack).close()
    else:
        refused(lambda: Golden.open(pack), file, field, words)


LIES = {
    "hidden_size": (13, "model.embed_tokens", "F32 [5, 12], but manifest.json implies F32 [5, 13] (full)"),
    "intermediate_size": (21, "model.layers.0.mlp.gate_proj", "implies F32 [5, 21]"),
    "vocab_size": (32, "lm_head", "implies F32 [5, 32]"),
    "head_dim": (6, "model.rotary_emb.cos", "implies F32 [5, 6]"),
    "num_attention_heads": (12, "model.layers.0.self_attn.q_matmul", "implies F32 [5, 48]"),
    "num_key_value_heads": (5, "model.layers.0.self_attn.k_matmul", "implies F32 [5, 20]"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_config_that_is_of_another_model(pack, name):
    value, tap, words = LIES[name]
    file = pack / "manifest.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), ("model", "config", name), value)))
    refused(lambda: Golden.open(pack), pack / "prompt.safetensors", tap, words)


@pytest.mark.parametrize("size", ["last", "stats", "sketch"])
def test_a_size_that_is_not_so(pack, size):
    file = pack / "manifest.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), ("taps", QROPE), size)))
    refused(lambda: Golden.open(pack), pack / "prompt.safetensors", QROPE, f"({size})")


TEXTS = {
    "empty": (lambda text: b"", None, "is not JSON"),
    "cut": (lambda text: text[: len(text) // 2], None, "is not JSON"),
    "cut before its end": (lambda text: text.rstrip()[:-1], None, "is not JSON"),
    "two of them": (lambda text: text + text, None, "is not JSON"),
    "a list": (lambda text: b"[" + text + b"]", None, "must hold a JSON object, not a list"),
    "not UTF-8": (lambda text: text.replace(b"qwq_ref", b"qwq\xff"), None, "is not UTF-8"),
    "deep": (lambda text: b'{"a":' + b"[" * 10**5 + text, None, "nested too deeply"),
    "a tap twice": (
        lambda text: text.replace(b'"lm_head": "full"', b'"lm_head": "full", "lm_head": "last"'),
        "lm_head",
        "twice",
    ),
    "a phase twice": (lambda text: text.replace(b'"rounding": {', b'"rounding": {"prompt": {}, '), "prompt", "twice"),
    "a field twice": (lambda text: text.replace(b'"version"', b'"version": "2.0", "version"'), "version", "twice"),
    "NaN": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": NaN', text, count=1), None, "holds NaN"),
    "infinity": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": Infinity', text, count=1), None, "holds Infinity"),
    "minus infinity": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": -Infinity', text, count=1), None, "-Infinity"),
    "1e999": (lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": 1e999', text, count=1), None, "beyond the range"),
    "9,999 digits": (
        lambda text: re.sub(rb'"fp32": [^,]*', b'"fp32": ' + b"9" * 9999, text, count=1),
        None,
        "is not JSON",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_manifest_that_is_not_sound_json(pack, case):
    change, field, words = TEXTS[case]
    file = pack / "manifest.json"
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    refused(lambda: Golden.open(pack), file, field, words)


def test_a_manifest_that_is_too_long(pack):
    os.truncate(pack / "manifest.json", 1 << 40)
    refused(lambda: Golden.open(pack), pack / "manifest.json", None, "bytes long; at most 67,108,864 are read")


def test_a_later_minor_version_is_read(pack, recorded):
    """Unknown keys are ignored at all places where they may occur."""
    file = pack / "manifest.json"
    values = json.loads(file.read_text())
    extra = {"new": [1, {"x": None}]}
    values |= {"version": "1.7", **extra, "model": values["model"] | extra, "rope": values["rope"] | extra}
    values["model"]["config"] |= extra
    values["phases"] = [phase | extra for phase in values["phases"]]
    values["rounding"]["prompt"]["lm_head"]["fp8"] = 0.06
    file.write_text(json.dumps(values))
    validator("golden-pack.schema.json").validate(values)
    with Golden.open(pack) as later, Golden.open(recorded) as golden:
        assert later.manifest == golden.manifest
