"""qwq convert --to hf: any source as a checkpoint of floats, which transformers and this project read alike."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine import export as exporting
from qwq_ref.engine.convert import convert
from qwq_ref.engine.export import export
from qwq_ref.errors import CheckpointError, FormError, UsageError
from qwq_ref.formats import Checkpoint, open_source
from qwq_ref.formats.packed import PackedFile, read_packed, write_packed
from tests.engine.test_finite import model_folder
from tests.engine.test_quantised import KINDS, write
from tests.support import gguf_text
from tests.support.gguf_models import mixture, peer_config, write_types
from tests.support.small_tokenizer import SENTENCES, SIZE, VALUES

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
NANO = qwq_ref.formats.resolve("qwq-nano")


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def rounded(array):
    return np.asarray(array, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def is_exported(folder, wanted, dtype):
    """Every tensor of a folder is that of a mapping, and config.json says nothing of a quantisation."""
    with Checkpoint.open(folder) as found:
        assert set(found.dtypes) == {"F32" if dtype == "float32" else "BF16"}
        assert list(found) == list(wanted)
        for name in found:
            want = wanted[name] if dtype == "float32" else rounded(wanted[name])
            assert np.array_equal(bits(found[name]), bits(want)), name
    values = json.loads((folder / "config.json").read_text())
    assert values["torch_dtype"] == dtype
    assert not {"quantization_config", "quantization"} & values.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", KINDS)
def test_quantised_checkpoints(tmp_path, name, dtype):
    config, wanted = write(tmp_path / "a", name)
    count = export(tmp_path / "a", tmp_path / "b", dtype)
    assert (count > 0) == (dtype == "bfloat16")
    is_exported(tmp_path / "b", {key: wanted[key] for key in config.tensors()}, dtype)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file(tmp_path, tied):
    config = peer_config(num_hidden_layers=2, tie_word_embeddings=tied)
    write_types(tmp_path / "m.gguf", config, mixture(["Q4_K", "Q6_K", "Q8_0", "Q5_0", "BF16", "F16"]))
    export(tmp_path / "m.gguf", tmp_path / "b", "float32")
    with open_source(tmp_path / "m.gguf") as source:
        is_exported(tmp_path / "b", dict(source.floats), "float32")
    assert not (tmp_path / "b" / "tokenizer.json").exists()  # the file has none


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
def test_floats(tmp_path, stored, dtype):
    folder = model_folder(tmp_path / "a", dtype=stored)
    count = export(folder, tmp_path / "b", dtype)
    assert (count > 0) == (stored != "BF16" and dtype == "bfloat16")
    with Checkpoint.open(folder) as source:
        is_exported(tmp_path / "b", dict(source), dtype)


def test_weights_that_are_refused(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    for value, error, words in ((np.nan, CheckpointError, "holds NaN"), (3.4e38, FormError, "beyond the range")):
        folder = model_folder(tmp_path / str(value), name, (40, 3), value, "F32")
        with pytest.raises(error, match=words) as caught:
            export(folder, tmp_path / "new")
        assert caught.value.field == name
        assert not (tmp_path / "new").exists()
    export(folder, tmp_path / "wide", "float32")
    with pytest.raises(UsageError, match="dtype: must be one of bfloat16, float32, got float16"):
        export(folder, tmp_path / "new", "float16")
    convert("qwq-nano", tmp_path / "packed", "q4")
    with pytest.raises(UsageError, match="is packed already"):
        export(tmp_path / "packed", tmp_path / "new")


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD_BYTES", 300_000)
    export("qwq-nano", tmp_path / "b")
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 5
    with Checkpoint.open(NANO) as source:
        is_exported(tmp_path / "b", dict(source), "bfloat16")
    homes = {}
    for name in files:
        with safetensors.safe_open(tmp_path / "b" / name, "np") as file:
            homes |= dict.fromkeys(file.keys(), name)
    assert index["weight_map"] == homes
    assert index["metadata"]["total_size"] == 2 * qwq_ref.footprint.parameters(Config.from_file(NANO / "config.json"))
    assert main(["convert", "--check", str(tmp_path / "b")]) == 0


@pytest.mark.parametrize("kind", ["AWQ, groups of 32", "GPTQ in an order, 4 bits", "gguf"])
def test_transformers_loads_it(tmp_path, kind):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if kind == "gguf":
        write_types(tmp_path / "a.gguf", peer_config(num_hidden_layers=2), mixture(["Q4_K", "Q8_0"]))
        path = tmp_path / "a.gguf"
    else:
        write(tmp_path / "a", kind)
        path = tmp_path / "a"
    export(path, tmp_path / "b", "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0].numpy()
    ours = qwq_ref.load(path, backend="numpy").logits(IDS)
    assert np.abs(found - ours).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_tokenizer_of_a_gguf_file(tmp_path, adds_bos):
    transformers = pytest.importorskip("transformers")
    fields = gguf_text.metadata(VALUES, SIZE + 5, tokenizer__ggml__add_bos_token=adds_bos)
    from qwq_ref.text import load_tokenizer
    from qwq_ref.text.export import tokenizer_files

    path = gguf_text.write(tmp_path / "a.gguf", fields)
    wanted = load_tokenizer(path, SIZE + 5)
    (tmp_path / "b").mkdir()
    for name, data in tokenizer_files(path, SIZE + 5).items():
        (tmp_path / "b" / name).write_bytes(data())
    gguf_text.same_tokenizer(load_tokenizer(tmp_path / "b", SIZE + 5), wanted)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for sentence in SENTENCES:
        ids = wanted.encode(sentence, special=True)
        assert theirs.encode(sentence) == wanted.begin(ids), sentence
        assert theirs.decode(ids, skip_special_tokens=False) == wanted.decode(ids, skip_special=False)
    assert theirs.chat_template == fields.get("tokenizer.chat_template")


def test_the_command(tmp_path, capsys):
    write(tmp_path / "a", "AWQ, groups of 32")
    command = ["convert", "-m", str(tmp_path / "a"), "--to", "hf", "-o"]
    assert main([*command, str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'b'}\n"
    assert err.splitlines()[-1].endswith("were rounded to bfloat16; --dtype float32 keeps every bit")
    assert main([*command, str(tmp_path / "c"), "--dtype", "float32"]) == 0
    assert "rounded" not in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.endswith(f"qwq: {tmp_path / 'b'}: holds a model already: take a new folder\n")
    assert main([*command, str(tmp_path / "d"), "--weights", "q4"]) == 2
    assert main(["convert", "-o", str(tmp_path / "d"), "--dtype", "float32"]) == 2
    capsys.readouterr()
    convert("qwq-nano", tmp_path / "packed", "q4")
    assert main([*command, str(tmp_path / "packed")]) == 2
    assert "holds something else" in capsys.readouterr().err


# --- An order of columns in packed files ------------------------------------------------------------------------------

ORDERED = [name for name in KINDS if "order" in name]


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.parametrize("weights", ["file", "q4", "q8", "fp32"])
def test_packed_weights_of_desc_act(tmp_path, name, weights):
    write(tmp_path / "a", name)
    path = convert(tmp_path / "a", tmp_path / "b", weights)
    ours, theirs = (qwq_ref.load(each, weights=weights).logits(IDS) for each in (tmp_path / "b", tmp_path / "a"))
    assert ours.tobytes() == theirs.tobytes()
    with PackedFile(path) as file:
        orders = {key: stored for key, stored in file.weights.items() if stored.dtype == "I32"}
        assert bool(orders) == (weights == "file")
        apart = "model.layers.0.self_attn.q_proj.columns" in orders
        assert apart == (weights == "file" and "many" in name)


def ordered(rng, columns=96):
    packed = core.quantise(rng.standard_normal((40, columns)).astype(np.float32), "q8")
    return core.Packed(packed.format, packed.packed, packed.shape, rng.permutation(columns).astype(np.int32))


def test_an_order_is_written_and_read(tmp_path):
    w = ordered(np.random.default_rng(0))
    write_packed(tmp_path / "x", {"a.weight": w, "v": np.ones(3, np.float32)})
    found = read_packed(tmp_path / "x")
    assert set(found) == {"a.weight", "v"}
    assert np.array_equal(found["a.weight"].columns, w.columns)
    x = np.random.default_rng(1).standard_normal((2, 96)).astype(np.float32)
    assert np.array_equal(core.matmul(x, found["a.weight"]), core.matmul(x, w))


@pytest.mark.parametrize("fault", [-1, 96, 1 << 30, "twice", "short", "owner"])
def test_an_order_that_is_none(tmp_path, fault):
    """The kernels would read memory elsewhere."""
    w = ordered(np.random.default_rng(0))
    order, name = w.columns.copy(), "a.columns"
    if fault == "twice":
        order[3] = order[4]
    elif isinstance(fault, int):
        order[3] = fault
    bare = core.Packed(w.format, w.packed, w.shape)
    write_packed(tmp_path / "x", {"a.weight": core.Packed(w.format, w.packed, w.shape, order)})
    if fault in ("short", "owner"):
        data = (tmp_path / "x").read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        if fault == "owner":
            name = "b.columns"
            header[name] = header.pop("a.columns")
        else:
            header[name]["shape"] = [48]
            header[name]["data_offsets"][1] -= 192
            data = data[:-192]
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    words = "is I32, but no order" if fault in ("short", "owner") else "must hold each column once"
    with pytest.raises(CheckpointError, match=words) as caught:
        read_packed(tmp_path / "x")
    assert caught.value.field == name
    assert bare.columns is None


def test_a_folder_with_an_order_that_is_none(tmp_path):
    write(tmp_path / "a", ORDERED[0])
    path = convert(tmp_path / "a", tmp_path / "b", "file")
    with PackedFile(path) as file:
        (name, *_) = (name for name, stored in file.weights.items() if stored.dtype == "I32")
        begin = file._file.tensors[name].begin
    with open(path, "r+b") as opened:
        opened.seek(begin)
        opened.write(b"\xff\xff\xff\x7f")
    with pytest.raises(CheckpointError, match="must hold each column once") as caught:
        qwq_ref.load(tmp_path / "b")
    assert caught.value.field == name
    shutil.rmtree(tmp_path / "b")
