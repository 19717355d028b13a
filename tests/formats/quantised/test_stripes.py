"""AWQ and GPTQ are read some columns at a time: never a whole large matrix, and with the same bits."""

import functools
import os
import threading

import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import open_source, safetensors
from qwq_ref.formats.quantised import stripes
from tests.support import quantised_models as made
from tests.support.safetensors_files import peak_memory
from tests.tools.convert_speed import QUANTISED
from tests.tools.load_quantised import METHODS, settings

CONFIG = Config.from_dict(made.values_of(intermediate_size=416))
NAMES = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "down")]
KINDS = {
    "awq": (made.CONFIG, made.awq_matrix),
    **{
        f"gptq of {bits} bits": (
            {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": bits == 4, "desc_act": bits == 3},
            functools.partial(made.gptq_matrix, bits=bits, order=made.shuffled if bits == 3 else None),
        )
        for bits in (2, 3, 4, 8)
    },
}


@pytest.fixture(params=[1, 1 << 30], ids=["parts of rows", "whole rows"])
def way(request, monkeypatch):
    """Both ways to read columns."""
    monkeypatch.setattr(safetensors, "_WIDE_BYTES", request.param)
    monkeypatch.setattr(safetensors, "_CHUNK_BYTES", 3000)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 20_000, 30_000])
def test_tensors_to_the_bit(tmp_path, monkeypatch, kind, size):
    """Stripes of 64 rows and more; the last one is shorter. Rows lie in one stripe, or in several."""
    settings, matrix = KINDS[kind]
    tensors, values = made.model(CONFIG, matrix)
    folder = made.write(tmp_path, CONFIG, tensors, settings)
    monkeypatch.setattr(stripes, "_STRIPE_BYTES", size)
    with open_source(folder) as source:
        for name in NAMES:
            assert source.floats[name].tobytes() == values[name].tobytes(), name
            for begin, end in [(0, 64), (64, 128), (32, 100), (3, 128), (60, 70), (120, 128)]:
                assert source.floats.rows(name, begin, end).tobytes() == values[name][begin:end].tobytes()


@pytest.mark.skipif(not core.available(), reason="there is no C core")
@pytest.mark.parametrize("kind", KINDS)
def test_packed_bytes(tmp_path, monkeypatch, kind):
    """C packs words of one stripe, and of two that are joined."""
    settings, matrix = KINDS[kind]
    folder = made.write(tmp_path, CONFIG, made.model(CONFIG, matrix)[0], settings)

    def packed(size, steps):
        monkeypatch.setattr(stripes, "_STRIPE_BYTES", size)
        with open_source(folder) as source:
            kept = source.kept
            for name in NAMES:
                out = core.empty(kept.form.formats[name], source.floats.shape(name))
                for begin in range(0, out.shape[0], steps):
                    end = min(begin + steps, out.shape[0])
                    kept.pack(name, begin, end, out.rows(begin, end))
                yield out.packed.tobytes()

    wanted = list(packed(1 << 30, 1 << 20))
    for size, steps in [(1, 64), (1, 96), (20_000, 192)]:
        assert list(packed(size, steps)) == wanted


@pytest.mark.skipif(not core.available(), reason="there is no C core")
@pytest.mark.parametrize("kind", ["awq", "gptq", "gptq-8"])
def test_a_wide_matrix_is_not_held(tmp_path, monkeypatch, kind):
    """Two matrices of 8 or 16 MB, read together as gate and up are: four stripes of 1 MB are held, and some rows."""
    method, bits, ordered = QUANTISED[kind]
    shape, rng, config = (8192, 2048), np.random.default_rng(0), Config.from_dict(made.values_of())
    names, tensors = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")], {}
    values = made.values_of(hidden_size=shape[1], intermediate_size=shape[0], num_hidden_layers=1, vocab_size=64)
    config = Config.from_dict(values)
    for name, (N, *K) in config.tensors().items():
        leaves = METHODS[method][0](rng, N, *K, bits, ordered) if name.removesuffix(".weight") in names else None
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{leaf}": each for leaf, each in leaves.items()} if leaves else {}
        tensors |= {} if leaves else {name: np.ones((N, *K), np.float16)}
    folder = made.write(tmp_path, config, tensors, settings(method, bits, ordered)["quantization_config"])
    monkeypatch.setattr(stripes, "_STRIPE_BYTES", 1 << 20)
    with open_source(folder) as source:
        kept, out = source.kept, core.empty(source.kept.form.formats[f"{names[0]}.weight"], (64, shape[1]))
        with peak_memory((6 << 20) + 300_000):
            for begin in range(0, shape[0], 64):
                for name in names:
                    kept.pack(f"{name}.weight", begin, begin + 64, out)


def test_threads_that_ask_together_read_once():
    recent, calls, start, results = stripes.Recent(), [], threading.Barrier(4), []

    def read():
        calls.append(1)
        return object()

    def ask():
        start.wait()
        results.append(recent.get(("matrix", 0), read))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == len(set(map(id, results))) == 1
    for i in range(1, 5):
        recent.get(("matrix", i), read)
    recent.get(("matrix", 0), read)
    assert len(calls) == 6


@pytest.mark.usefixtures("way")
def test_a_file_that_shrinks(tmp_path, monkeypatch):
    settings, matrix = KINDS["awq"]
    folder = made.write(tmp_path, CONFIG, made.model(CONFIG, matrix)[0], settings)
    monkeypatch.setattr(stripes, "_STRIPE_BYTES", 1)
    with open_source(folder) as source:
        os.truncate(folder / "model.safetensors", 20_000)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: ends at byte"):
            source.floats[NAMES[0]]
