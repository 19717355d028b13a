"""Name maps: read, matched, and refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import GoldenError
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.adapters.folders import open_candidate
from qwq_ref.oracle.graph import (
    COS,
)
from tests.support.candidates import (
    CONFIG,
    GOOD,
    IDS,
    NORM,
    TAPS,
    Q,
    refused,
    write,
    write_map,
)


def entry(**options):
    """A map with one more entry, for a name in every layer."""
    return {"tensors": GOOD["tensors"] | {"x.{layer}": options}}


def top(**changes):
    return GOOD | changes


X = "tensors.x.{layer}"
MAPS = {
    "no tensors": ({}, "tensors", "must map names to taps, got None"),
    "empty tensors": ({"tensors": {}}, "tensors", "got {}"),
    "tensors is a list": ({"tensors": []}, "tensors", "got []"),
    "unknown key": (top(tensor={}), "tensor", "is unknown; known are tensors, first_layer"),
    "unknown tap": (
        entry(tap="self_attn.q_porj"),
        f"{X}.tap",
        "is no tap of this config (did you mean self_attn.q_proj?)",
    ),
    "a tap like nothing": (entry(tap="zzz"), f"{X}.tap", "'zzz' is no tap of this config"),
    "a tap of a layer too far": (
        {"tensors": {"x": "model.layers.2.resid_pre"}},
        "tensors.x.tap",
        "is no tap of this config",
    ),
    "a number for a tap": ({"tensors": {"x": 3}}, "tensors.x", "must be a tap, or an object"),
    "an object for a tap": (entry(tap={}), f"{X}.tap", "must be the name of a tap, got {}"),
    "neither tap nor split": (entry(scale=2), X, "must have one of tap and split"),
    "tap and split": (entry(tap="mlp.act", split=[]), X, "must have one of tap and split"),
    "no {layer}": ({"tensors": {"x": "self_attn.q_proj"}}, "tensors.x", "needs {layer} in its name"),
    "a {layer} too many": (entry(tap=NORM), X, "has {layer} in its name, but model.norm is one tap"),
    "{layer} and one layer": (entry(tap=Q), X, "has {layer} in its name, but model.layers.0"),
    "{layer} twice": (
        {"tensors": {"{layer}{layer}": "mlp.act"}},
        "tensors.{layer}{layer}",
        "once, and no other braces",
    ),
    "{Layer}": ({"tensors": {"{Layer}": "mlp.act"}}, "tensors.{Layer}", "once, and no other braces"),
    "{i}": ({"tensors": {"{layer}{i}": "mlp.act"}}, "tensors.{layer}{i}", "once, and no other braces"),
    "a lone brace": ({"tensors": {"a}": NORM}}, "tensors.a}", "once, and no other braces"),
    "a tap twice": (entry(tap="self_attn.q_proj"), X, "gives self_attn.q_proj, and so does blk.{layer}.attn_q"),
    "a tap twice by split": (entry(tap="self_attn.v_proj"), X, "gives self_attn.v_proj, and so does blk.{layer}.kv"),
    "a tap twice in a split": (entry(split=["mlp.act", "mlp.act"]), X, "gives mlp.act twice"),
    "one layer's tap twice": (
        {"tensors": {"a": Q, "b{layer}": "self_attn.q_proj"}},
        "tensors.b{layer}",
        "gives self_attn.q_proj, and so does a",
    ),
    "one tap twice": ({"tensors": {"a": NORM, "b": NORM}}, "tensors.b", "gives model.norm, and so does a"),
    "unknown option": (entry(tap="mlp.act", transposed=[1, 0]), f"{X}.transposed", "is unknown; known are tap"),
    "layout without split": (entry(tap="mlp.act", layout="concat"), f"{X}.layout", "is unknown"),
    "option of a part on a split": (entry(split=["mlp.act", "resid_pre"], scale=2), f"{X}.scale", "is unknown"),
    "option of a tensor on a part": (
        entry(split=["mlp.act", {"tap": "resid_pre", "rows": "last"}]),
        f"{X}.split[1].rows",
        "is unknown; known are tap, repeated",
    ),
    "split of one": (entry(split=["mlp.act"]), f"{X}.split", "two taps or more"),
    "split is text": (entry(split="mlp.act"), f"{X}.split", "two taps or more"),
    "split of numbers": (entry(split=["mlp.act", 2]), f"{X}.split[1]", "must be a tap, or an object with tap, got 2"),
    "split without a tap": (entry(split=["mlp.act", {}]), f"{X}.split[1]", "with tap, got {}"),
    "split of scores": (entry(split=["mlp.act", "self_attn.scores"]), f"{X}.split[1].tap", "has no fixed width"),
    "unknown tap in a split": (entry(split=["mlp.act", "x"]), f"{X}.split[1].tap", "is no tap"),
    "unknown layout": (entry(split=["mlp.act", "resid_pre"], layout="blocks"), f"{X}.layout", "got 'blocks'"),
    "layout is a list": (entry(split=["mlp.act", "resid_pre"], layout=[]), f"{X}.layout", "got []"),
    "interleaved of two widths": (
        entry(split=["mlp.act", "resid_pre"], layout="interleaved"),
        f"{X}.layout",
        "taps of one width",
    ),
    "groups without heads": (
        entry(split=["mlp.act", "self_attn.q_rope"], layout="groups"),
        f"{X}.layout",
        "made of heads",
    ),
    "axes missing": (entry(tap="mlp.act", transpose=[0, 2]), f"{X}.transpose", "every axis once"),
    "axes twice": (entry(tap="mlp.act", transpose=[0, 0]), f"{X}.transpose", "every axis once"),
    "negative axes": (entry(tap="mlp.act", transpose=[-1, 0]), f"{X}.transpose", "every axis once"),
    "no axes": (entry(tap="mlp.act", transpose=[]), f"{X}.transpose", "every axis once"),
    "axes are text": (entry(tap="mlp.act", transpose="10"), f"{X}.transpose", "every axis once"),
    "axes are true": (entry(tap="mlp.act", transpose=[False, True]), f"{X}.transpose", "every axis once"),
    "axes are a number": (
        entry(tap="mlp.act", transpose=1),
        f"{X}.transpose",
        "every axis once, like [1, 0, 2], got 1",
    ),
    "axes are nothing": (entry(tap="mlp.act", transpose=None), f"{X}.transpose", "got None"),
    "nine axes": (entry(tap="mlp.act", transpose=list(range(9))), f"{X}.transpose", "at most 8"),
    "reverse is text": (entry(tap="mlp.act", reverse="yes"), f"{X}.reverse", "must be axes or shape, got 'yes'"),
    "reverse is a number": (entry(tap="mlp.act", reverse=1), f"{X}.reverse", "must be axes or shape, got 1"),
    "rows is a number": (entry(tap="mlp.act", rows=1), f"{X}.rows", "must be last or cache, got 1"),
    "rows of scores from a cache": (entry(tap="self_attn.scores", rows="cache"), f"{X}.rows", "hold all keys anyway"),
    "repeated is text": (entry(tap="self_attn.k_rope", repeated="yes"), f"{X}.repeated", "true or false"),
    "repeated queries": (entry(tap="self_attn.q_rope", repeated=True), f"{X}.repeated", "key and value heads"),
    "repeated residuals": (entry(tap="resid_pre", repeated=True), f"{X}.repeated", "key and value heads"),
    "permute is true": (entry(tap="self_attn.q_rope", permute=True), f"{X}.permute", "pairs-to-halves, got True"),
    "permuted values": (
        entry(tap="mlp.act", permute="pairs-to-halves"),
        f"{X}.permute",
        "heads of q and k, cos, sin; not mlp.act",
    ),
    "halved heads": (entry(tap="self_attn.q_rope", half=True), f"{X}.half", "is for model.rotary_emb.cos and"),
    "half and permute": (
        {"tensors": {"x": {"tap": COS, "half": True, "permute": "pairs-to-halves"}}},
        "tensors.x.permute",
        "has no meaning with half",
    ),
    "scale of 0": (entry(tap="mlp.act", scale=0), f"{X}.scale", "a number that is not 0, got 0"),
    "scale is text": (entry(tap="mlp.act", scale="1/8"), f"{X}.scale", "must be a number"),
    "scale is true": (entry(tap="mlp.act", scale=True), f"{X}.scale", "must be a number"),
    "scale beyond all": (entry(tap="mlp.act", scale=1e40), f"{X}.scale", "must be a number"),
    "scale beyond floats": (entry(tap="mlp.act", scale=10**400), f"{X}.scale", "must be a number"),
    "first layer of -1": (top(first_layer=-1), "first_layer", "must be an integer from 0"),
    "first layer is true": (top(first_layer=True), "first_layer", "must be an integer from 0"),
    "phases is text": (top(phases="step"), "phases", "must be an object"),
    "unknown phase": (top(phases={"decoding": "x"}), "phases.decoding", "known are prompt, decode, first"),
    "prompt is a number": (top(phases={"prompt": 0}), "phases.prompt", "must be the name of a folder"),
    "prompt is nothing": (top(phases={"prompt": ""}), "phases.prompt", "must be the name of a folder"),
    "prompt with {n}": (top(phases={"prompt": "p{n}"}), "phases.prompt", "without braces"),
    "decode without {n}": (top(phases={"decode": "step"}), "phases.decode", "must have {n} in it"),
    "decode with two": (top(phases={"decode": "{n}{n}"}), "phases.decode", "must have {n} in it"),
    "a path for a phase": (top(phases={"decode": "a/{n}"}), "phases.decode", "must be the name of a folder"),
    "first is text": (top(phases={"first": "1"}), "phases.first", "must be an integer"),
    "prompt is a step, too": (
        top(phases={"prompt": "step_0", "decode": "step_{n}"}),
        "phases.first",
        "must be above the number in step_0: that would be decode-0",
    ),
    "token_ids is a list": (top(token_ids=[1]), "token_ids", "must be the name of a tensor"),
    "token_ids is a tap, too": (top(token_ids="norm"), "token_ids", "is among the tensors, too"),
    "precision of nothing": (top(precision="int8"), "precision", "must be one of fp32, bf16, fp16"),
    "precision of no tap": (top(precision={"mlp.actt": "bf16"}), "precision.mlp.actt", "did you mean mlp.act"),
}


@pytest.fixture
def some(tmp_path):
    """A folder for which `GOOD` is a good map."""
    files = {"blk.0.attn_q": TAPS["prompt", Q], "norm": TAPS["prompt", NORM]}
    return write(tmp_path / "some", {f"{name}.npy": array for name, array in files.items()})


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml", ".YAML"])
def test_the_good_map_is_read(suffix, some, tmp_path):
    """Each case above is this map with one change."""
    candidate = open_candidate(some, CONFIG, write_map(tmp_path / f"map{suffix}", GOOD))
    assert set(candidate.tensors) == {("prompt", Q), ("prompt", NORM)}


@pytest.mark.parametrize("case", MAPS)
def test_bad_maps(case, some, tmp_path):
    values, field, words = MAPS[case]
    for name in ("map.json", "map.yaml"):
        path = write_map(tmp_path / name, values)
        refused(lambda path=path: open_candidate(some, CONFIG, path), path, field, words)


TEXTS = {
    "nothing": (b"", None, "must hold a mapping, not None"),
    "a comment": (b"# nothing", None, "must hold a mapping, not None"),
    "a list": (b"- a\n- b\n", None, "must hold a mapping, not ['a', 'b']"),
    "text": (b"hello", None, "must hold a mapping, not 'hello'"),
    "a date": (b"2020-01-01", None, "must hold a mapping, not '2020-01-01'"),
    "not YAML": (b"tensors: {a: b", None, "is not YAML (line 1"),
    "a tab": (b"tensors:\n\ta: b\n", None, "is not YAML (line 2"),
    "a control character": (b"tensors: \x01", None, "is not YAML"),
    "not UTF-8": (b"tensors: \xff", None, "is not UTF-8 (byte 9)"),
    "UTF-16": ("tensors: {}".encode("utf-16"), None, "is not UTF-8"),
    "a key twice": (b"tensors:\n  norm: lm_head\n  norm: model.norm\n", "norm", "appears twice (line 3)"),
    "a top key twice": (b"tensors: {a: model.norm}\ntensors: {a: model.norm}\n", "tensors", "appears twice (line 2)"),
    "an anchor": (b"tensors: &x {a: model.norm}\n", None, "line 1: anchors and aliases are not read"),
    "an alias": (b"tensors:\n  a: *x\n", None, "line 2: anchors and aliases are not read"),
    "an anchored scalar": (b"tensors: {a: &x model.norm}\n", None, "anchors and aliases are not read"),
    "an anchored key": (b"tensors: {&x a: model.norm}\n", None, "anchors and aliases are not read"),
    "a merge": (b"tensors:\n  <<: {a: model.norm}\n", "tensors.<<", "must have one of tap and split"),
    "Python": (b"tensors: !!python/object/apply:os.abort []\n", None, "tags (tag:yaml.org,2002:python/object"),
    "a tagged scalar": (b"tensors: {a: !!str model.norm}\n", None, "tags (tag:yaml.org,2002:str) are not read"),
    "a tagged map": (b"!!map {tensors: {a: model.norm}}\n", None, "tags (tag:yaml.org,2002:map) are not read"),
    "a number for a name": (b"tensors: {1: model.norm}\n", None, "line 1: the key 1 is no string; put it in quotes"),
    "yes for a name": (b"tensors: {yes: model.norm}\n", None, "the key True is no string"),
    "a list for a name": (b"tensors: {[a]: model.norm}\n", None, "the key ['a'] is no string"),
    "two documents": (b"tensors: {a: model.norm}\n---\ntensors: {}\n", None, "line 2: a second document"),
    "nested beyond reason": (b"a: " + b"[" * 20 + b"]" * 20, None, "is nested too deeply"),
    "nested beyond all reason": (b"a: " + b"[" * 50_000, None, "is nested too deeply"),
    "an endless integer": (b"tensors: {a: {tap: lm_head, scale: " + b"9" * 5000 + b"}}", None, "is not YAML"),
    "not a number": (b"tensors: {a: {tap: lm_head, scale: .nan}}", "tensors.a.scale", "got nan"),
    "infinity": (b"tensors: {a: {tap: lm_head, scale: .inf}}", "tensors.a.scale", "got inf"),
    "too long": (b"#" * ((256 << 10) + 1), None, "at most 262,144 are read"),
}
BILLION = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
)
TEXTS["a billion laughs"] = (BILLION, None, "line 1: anchors and aliases are not read")


@pytest.mark.parametrize("case", TEXTS)
def test_bad_yaml(case, some, tmp_path):
    content, field, words = TEXTS[case]
    path = tmp_path / "map.yaml"
    path.write_bytes(content)
    refused(lambda: open_candidate(some, CONFIG, path), path, field, words)


def test_yaml_is_what_it_looks_like(some, tmp_path):
    text = """\ufeff# a map
    tensors:
      'blk.{layer}.attn_q': {tap: self_attn.q_proj, scale: 1e-3, transpose: [0, 1], reverse: no}
      "norm":
        tap: model.norm
        scale: -2
      "1": lm_head
      'no': model.embed_tokens
      '1e3': model.rotary_emb.sin
      2020-01-01: model.rotary_emb.cos
    """
    (tmp_path / "map.yaml").write_text(text)
    tensors = open_candidate(some, CONFIG, tmp_path / "map.yaml").tensors
    assert np.array_equal(tensors["prompt", Q](), TAPS["prompt", Q] * np.float32(1e-3))
    assert np.array_equal(tensors["prompt", NORM](), TAPS["prompt", NORM] * -2)


def test_bad_files_for_maps(some, tmp_path):
    for name, content, field, words in [
        ("map.toml", b"", None, "must be a .yaml or a .json file"),
        ("map.json", b"[]", None, "must hold a JSON object"),
        ("map.json", b'{"tensors": {"a": "lm_head", "a": "lm_head"}}', "a", "appears twice"),
        ("map.json", b'{"first_layer": NaN}', None, "holds NaN"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        refused(lambda path=path: open_candidate(some, CONFIG, path), path, field, words)
    refused(lambda: open_candidate(some, CONFIG, tmp_path / "x.yaml"), tmp_path / "x.yaml", None, "cannot be opened")


def test_json_needs_no_yaml(some, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert open_candidate(some, CONFIG, write_map(tmp_path / "map.json", GOOD)).tensors
    path = tmp_path / "map.yaml"
    path.write_text("{}")
    refused(lambda: open_candidate(some, CONFIG, path), path, None, "PyYAML is not installed")


@given(st.text(st.sampled_from("{}[]:,-&*!<'\"\n a0|>?#%@`~.") | st.characters(), max_size=60))
def test_no_text_breaks_the_reader_of_maps(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "texts"
    folder.mkdir(exist_ok=True)
    path = folder / "map.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(GoldenError) as caught:
        open_candidate(folder, CONFIG, path)
    assert str(caught.value).isprintable()


def test_names_that_two_entries_fit(some, tmp_path):
    values = {"tensors": {"blk.{layer}.attn_q": "self_attn.q_proj", "blk.0.attn_{layer}q": "mlp.act", "norm": NORM}}
    assert open_candidate(some, CONFIG, write_map(tmp_path / "map.json", values)).tensors
    values = {"tensors": {"blk.{layer}.attn_q": "self_attn.k_proj", "blk.0.attn_q": Q}}
    path = write_map(tmp_path / "map.json", values)
    field = "tensors.blk.{layer}.attn_q"
    refused(lambda: open_candidate(some, CONFIG, path), path, field, "matches blk.0.attn_q, and so does blk.0.attn_q")


def test_names_that_are_right_need_no_entry(some, tmp_path):
    write(some, {"lm_head.npy": TAPS["prompt", "lm_head"]})
    name_map = write_map(tmp_path / "map.json", GOOD)
    assert ("prompt", "lm_head") in open_candidate(some, CONFIG, name_map).tensors
    write(some, {"model.norm.npy": TAPS["prompt", NORM]})
    refused(lambda: open_candidate(some, CONFIG, name_map), some, NORM, "as model.norm.npy, and as norm.npy")
    swapped = write_map(tmp_path / "map.json", {"tensors": {"model.norm": "lm_head", "lm_head": "model.norm"}})
    got = open_candidate(some, CONFIG, swapped).tensors["prompt", "lm_head"]()
    assert np.array_equal(got, TAPS["prompt", NORM])


def test_numbers_of_layers(tmp_path):
    for value, number in enumerate(("0", "01", "2", "3", "x", "-1", "²")):
        write(tmp_path, {f"blk.{number}.q.npy": np.full((5, 80), value, np.float32)})
    name_map = write_map(tmp_path / "map.json", {"tensors": {"blk.{layer}.q": "self_attn.q_proj"}, "first_layer": 1})
    candidate = open_candidate(tmp_path, CONFIG, name_map)
    assert {tap: load()[0, 0] for (_, tap), load in candidate.tensors.items()} == {
        Q: 1,
        "model.layers.1.self_attn.q_proj": 2,
    }
    unknown = {"map.json"} | {f"blk.{n}.q.npy" for n in ("0", "3", "x", "-1", "²")}
    assert set(candidate.unknown) == unknown


LOADS = {
    "another number of axes": ({"transpose": [0, 2, 1]}, (5, 80), "has 2 axes [5, 80]; transpose lists 3"),
    "half of the heads": ({"permute": "pairs-to-halves"}, (5, 40), "shape [5, 40], but its last axes must make up 80"),
    "heads before tokens": ({"permute": "pairs-to-halves"}, (10, 5, 8), "last axes must make up 80 values"),
    "no axes at all": ({"permute": "pairs-to-halves"}, (), "last axes must make up 80 values"),
    "no values": ({"permute": "pairs-to-halves"}, (5, 0), "last axes must make up 80 values"),
    "two sequences": ({"rows": "last"}, (2, 5, 80), "shape [2, 5, 80], where rows needs [tokens, 80]"),
    "no rows": ({"rows": "last"}, (0, 80), "where rows needs [tokens, 80]"),
}


@pytest.mark.parametrize("case", LOADS)
def test_tensors_that_the_map_does_not_fit(case, tmp_path):
    options, shape, words = LOADS[case]
    name_map = write_map(tmp_path / "m.json", {"tensors": {"q{layer}": {"tap": "self_attn.q_proj"} | options}})
    write(tmp_path, {"q0.npy": np.zeros(shape, np.float32)})
    refused(open_candidate(tmp_path, CONFIG, name_map).tensors["prompt", Q], tmp_path / "q0.npy", None, words)
    np.savez(tmp_path / "x.npz", q0=np.zeros(shape, np.float32))
    refused(open_candidate(tmp_path / "x.npz", CONFIG, name_map).tensors["prompt", Q], tmp_path / "x.npz", "q0", words)


def test_heads_that_are_not_what_they_should_repeat(tmp_path):
    """Tiled heads are a mistake that taking every fifth head would hide. A NaN is a copy of a NaN."""
    k = TAPS["prompt", "model.layers.0.self_attn.k_rope"].copy()
    k[0, 0, 0] = np.nan
    name_map = write_map(
        tmp_path / "map.json", {"tensors": {"k{layer}": {"tap": "self_attn.k_rope", "repeated": True}}}
    )
    path = tmp_path / "k0.npy"
    key = ("prompt", "model.layers.0.self_attn.k_rope")
    write(tmp_path, {"k0.npy": np.repeat(k, CONFIG.G, axis=1)})
    got = fit(open_candidate(tmp_path, CONFIG, name_map).tensors[key](), k.shape)[0]
    assert np.array_equal(got, k, equal_nan=True)
    write(tmp_path, {"k0.npy": np.tile(k, (1, CONFIG.G, 1))})
    load = open_candidate(tmp_path, CONFIG, name_map).tensors[key]
    refused(load, path, None, "is mapped as repeated 5 times, but head 1 is no copy of head 0")
    last = np.repeat(k, CONFIG.G, axis=1)
    last[-1, -1, -1] += 1
    write(tmp_path, {"k0.npy": last})
    refused(load, path, None, "head 9 is no copy of head 5")


def test_scale_of_float16_is_taken_in_float32(tmp_path):
    values = {"tensors": {"norm": {"tap": NORM, "scale": 3e4}}}
    write(tmp_path, {"norm.npy": np.full((5, 24), 7, np.float16)})
    got = open_candidate(tmp_path, CONFIG, write_map(tmp_path / "map.json", values)).tensors["prompt", NORM]()
    assert got.dtype == np.float32
    assert (got == 210_000).all()
    write(tmp_path, {"norm.npy": np.full((5, 24), 0.1)})
    got = open_candidate(tmp_path, CONFIG, tmp_path / "map.json").tensors["prompt", NORM]()
    assert got.dtype == np.float64
    assert (got == 3e4 * 0.1).all()


@pytest.mark.parametrize("shape", ["full", "one row", "one row of three axes"])
@pytest.mark.parametrize("kind", ["scores", "probs"])
def test_the_last_row_of_scores(kind, shape, tmp_path):
    tap = f"model.layers.1.self_attn.{kind}"
    whole = TAPS["prompt", tap]
    stored = {"full": whole[None], "one row": whole[:, -1], "one row of three axes": whole[:, -1:]}[shape]
    values = {"tensors": {"s{layer}": {"tap": f"self_attn.{kind}", "rows": "last"}}}
    write(tmp_path, {"s1.npy": stored})
    got = open_candidate(tmp_path, CONFIG, write_map(tmp_path / "map.json", values)).tensors["prompt", tap]()
    assert np.array_equal(got, whole[:, -1:])
    for bad in (np.zeros(5), np.zeros((2, 10, 5, 5)), np.zeros((10, 0, 5))):
        write(tmp_path, {"s1.npy": bad})
        with pytest.raises(GoldenError, match=r"rows: last needs \[10, tokens, keys\]"):
            open_candidate(tmp_path, CONFIG, tmp_path / "map.json").tensors["prompt", tap]()


def test_names_of_phases(tmp_path):
    phases = {"prompt": "step_0", "decode": "step_{n}", "first": 1}
    names = {"step_0": 0, "step_1": 1, "step_02": 2, "step_x": 3, "step_": 4, "prompt": 5, "decode-0": 6}
    for name, value in names.items():
        write(tmp_path, {f"{name}/norm.npy": np.full((1, 24), value, np.float32)})
    write_safetensors(tmp_path / "step_7.safetensors", {"norm": np.full((1, 24), 7)}, "F32")
    name_map = write_map(tmp_path / "map.json", {"tensors": {"norm": NORM}, "phases": phases})
    candidate = open_candidate(tmp_path, CONFIG, name_map)
    wanted = {"prompt": 0, "decode-0": 1, "decode-1": 2, "decode-6": 7}
    assert {phase: load()[0, 0] for (phase, _), load in candidate.tensors.items()} == wanted
    assert set(candidate.unknown) == {"step_x/", "step_/", "prompt/", "decode-0/", "map.json"}

    path = tmp_path / "x.npz"
    np.savez(path, **{"step_1/norm": np.zeros((1, 24)), "step_0/norm": np.ones((1, 24)), "step_x/norm": np.zeros(1)})
    candidate = open_candidate(path, CONFIG, name_map)
    assert {phase: load()[0, 0] for (phase, _), load in candidate.tensors.items()} == {"prompt": 1, "decode-0": 0}
    assert candidate.unknown == ("step_x/norm",)


def test_ids_by_another_name(tmp_path):
    write(tmp_path, {"p/norm.npy": TAPS["prompt", NORM], "p/inp_tokens.npy": IDS[:5], "s9/inp_tokens.npy": IDS[5:6]})
    values = {
        "tensors": {"norm": NORM},
        "token_ids": "inp_tokens",
        "phases": {"prompt": "p", "decode": "s{n}", "first": 9},
    }
    candidate = open_candidate(tmp_path, CONFIG, write_map(tmp_path / "map.json", values))
    assert candidate.token_ids == IDS[:6]
    assert candidate.unknown == ("map.json",)
