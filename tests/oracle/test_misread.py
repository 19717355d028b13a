"""Mistakes of reading quantised files: an independent decoder makes the wrong weights, and the oracle names them."""

import gguf
import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.formats import open_floats
from qwq_ref.oracle import compare, record
from qwq_ref.oracle.explain.mistakes import BY_NAME, possible
from qwq_ref.oracle.graph import LAYER, phases_of
from qwq_ref.oracle.matrix import Matrix
from tests.support import gguf_models, quantised_models
from tests.support.packs import spec_run
from tests.support.planted import misread
from tests.support.planted.files import of_awq, of_gguf, of_gptq, of_mlx

IDS, DECODE = [3, 1, 4, 1, 5, 9, 2, 6], 2
PHASES = phases_of(IDS, DECODE)
TAPS = {op.matrix: op.tap for op in LAYER if op.matrix}
KINDS = [*gguf_models.NATIVE, *gguf_models.NATIVE_SUPER, "IQ3_S"]


def wrong_by_catalogue(source, name, mistake):
    """Return the weights that a mistake of the catalogue makes of a tensor."""
    op = BY_NAME[mistake].replaces(source.config)[TAPS[name.partition(".0.")[2]]]
    return op.change(source.config, Matrix(source, name))


def in_layers(values):
    return [name for name, value in values.items() if ".0." in name and value.ndim == 2]


SOURCES = {f"gguf {kind}": (of_gguf, kind) for kind in KINDS}
SOURCES |= {"awq": (of_awq, None)} | {f"gptq {bits}": (of_gptq, bits) for bits in (4, 8)}
SOURCES |= {f"mlx {bits}": (of_mlx, bits) for bits in (2, 3, 4, 8)}


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    read, kind = SOURCES[request.param]
    return read(tmp_path_factory.mktemp("made"), kind)


@pytest.mark.parametrize("made", SOURCES, indirect=True)
def test_the_wrong_weights_are_those_of_another_decoder(made):
    """Mistakes of reading this format change the other types of it by nothing."""
    with open_floats(made.path) as source:
        own = [name for name, (mistake, _) in possible(source.config, source).items() if source.kind in mistake.sources]
        assert set(made.wrong) <= set(own)
        for mistake in own:
            for name in in_layers(made.right):
                expected = made.wrong.get(mistake, made.right)[name]
                error = wrong_by_catalogue(source, name, mistake) - expected
                # The zero points of GPTQ are moved by whole scales, which rounds once more.
                allowed = 2e-7 * np.abs(made.right[name]).max() if "zero" in mistake else 0
                assert np.abs(error).max() <= allowed, (mistake, name)
            if mistake in made.wrong:
                assert any((made.wrong[mistake][name] != made.right[name]).any() for name in in_layers(made.right))


def test_what_a_file_cannot_show_is_not_tried():
    """A mistake of one format is tried with its files, and where floats show it."""
    config = gguf_models.peer_config()
    tried = set(possible(config, None))
    assert {"awq-nibble-order", "gptq-zero-low", "gguf-nibbles-interleaved", "mlx-bit-order", "gelu"} <= tried
    assert not {"gptq-g-idx-ignored", "gguf-super-scale-missing", "gguf-min-missing"} & tried
    narrow = Config.from_dict(quantised_models.config_values(hidden_size=24, intermediate_size=44))
    assert not {name for name in possible(narrow, None) if name.startswith("gguf")}
    assert "mlx-bit-order" in possible(narrow, None)  # rows of 24 are whole words


NAMED = ["gguf Q5_0", "gguf Q4_K", "gguf Q6_K", "awq", "gptq 4", "gptq 8", "mlx 4", "mlx 8"]


@pytest.mark.parametrize("mode", ["all taps", "logits"])
@pytest.mark.parametrize("made", NAMED, indirect=True)
def test_the_oracle_names_them(made, tmp_path, mode):
    with open_floats(made.path) as source:
        record(made.config, source, tmp_path / "pack", IDS, DECODE)
    for mistake, wrong in made.wrong.items():
        taps = spec_run(made.config, made.right | wrong, PHASES)
        if mode == "logits":
            taps = {phase: {"lm_head": of["lm_head"]} for phase, of in taps.items()}
        report = compare(tmp_path / "pack", taps, model=made.path, precision="fp32", coverage=False)
        assert report.cause == mistake, report
        assert not report.diagnosis.causes[0].equals, report
        if mode == "all taps":
            assert report.first.tap == "model.layers.0.self_attn.q_matmul"


def test_the_layouts_of_this_file_are_those_of_gguf():
    for kind in misread.NIBBLES.keys() | misread.SUPER.keys() | misread.MINS.keys():
        size = next(table[kind][0] for table in (misread.NIBBLES, misread.SUPER, misread.MINS) if kind in table)
        assert gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1] == size
