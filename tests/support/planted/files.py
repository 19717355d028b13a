"""Small quantised models, in files, and what wrong readers make of them."""

import functools
import tempfile
from pathlib import Path

import torch

from qwq_ref.config import Config
from tests.support import gguf_models, quantised_models
from tests.support.planted import misread

OF_GGUF = {
    "gguf-nibbles-interleaved": (misread.nibbles_interleaved, misread.NIBBLES),
    "gguf-halves-swapped": (misread.halves_swapped, misread.NIBBLES),
    "gguf-super-scale-missing": (misread.super_scale_missing, misread.SUPER),
    "gguf-min-missing": (misread.min_missing, misread.MINS),
}


class Made:
    """A quantised model: its path and config, the right values, and the wrong ones of some mistakes, by name."""

    def __init__(self, path, config, right, wrong) -> None:
        self.path, self.config, self.right, self.wrong = path, config, right, wrong


def of_gguf(folder, kind, layers=2, change=lambda found: None):
    """change  of the bytes, in place: {GGUF's name: (bytes, type)} -> None"""
    config = gguf_models.peer_config(num_hidden_layers=layers)
    raw = {}

    def tensors(found):
        change(found)
        raw.update(found)

    decoded = gguf_models.write_types(folder / "m.gguf", config, lambda name: kind, tensors=tensors)
    names = {name: gguf_models.gguf_tensor_name(name) for name in config.tensors()}
    right = {name: decoded[own] for name, own in names.items()}
    matrices = {name: raw[own][0] for name, own in names.items() if ".layers." in name and right[name].ndim == 2}
    wrong = {}
    for mistake, (read, kinds) in OF_GGUF.items():
        if kind in kinds:
            wrong[mistake] = {name: read(data, kind) for name, data in matrices.items()}
    return Made(folder / "m.gguf", config, right, wrong)


def of_checkpoint(folder, settings, matrix, mistakes, layers=2, **where):
    """mistakes  name -> a function from the tensors of a module to the wrong values"""
    config = Config.from_dict(quantised_models.values_of(num_hidden_layers=layers))
    tensors, right = quantised_models.model(config, matrix)
    wrong = {mistake: {} for mistake in mistakes}
    for name in (name for name, value in right.items() if ".layers." in name and value.ndim == 2):
        module = name.removesuffix("weight")
        leaves = {key.removeprefix(module): value for key, value in tensors.items() if key.startswith(module)}
        for mistake, read in mistakes.items():
            wrong[mistake][name] = read(leaves)
    return Made(quantised_models.write(folder / "model", config, tensors, settings, **where), config, right, wrong)


def of_awq(folder, kind):
    mistakes = {
        "awq-nibble-order": lambda leaves: misread.awq_decoded(leaves, 32, range(8)),
        "gptq-zero-low": lambda leaves: misread.awq_decoded(leaves, 32, zero=-1),
        "gptq-zero-high": lambda leaves: misread.awq_decoded(leaves, 32, zero=1),
    }
    return of_checkpoint(folder, quantised_models.CONFIG, quantised_models.awq_matrix, mistakes)


def of_gptq(folder, bits, layers=2):
    def matrix(rng, N, K):
        return quantised_models.gptq_matrix(rng, N, K, bits=bits, order=quantised_models.shuffled, least=1)

    mistakes = {
        "gptq-g-idx-ignored": lambda leaves: misread.g_idx_ignored(leaves, bits, 32),
        "gptq-zero-low": lambda leaves: misread.gptq_decoded(leaves, bits, 32, zero=0),
        "gptq-zero-high": lambda leaves: misread.gptq_decoded(leaves, bits, 32, zero=2),
    }
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True}
    return of_checkpoint(folder, settings, matrix, mistakes, layers)


def of_mlx(folder, bits):
    def matrix(rng, N, K):
        return quantised_models.mlx_matrix(rng, N, K, bits=bits)

    mistakes = {"mlx-bit-order": lambda leaves: misread.mlx_highest_first(leaves, bits, 64)}
    settings = {"bits": bits, "group_size": 64}
    return of_checkpoint(folder, settings, matrix, {} if 32 % bits else mistakes, key="quantization")


_FOLDER = tempfile.TemporaryDirectory()
MADE = {"gguf": lambda folder: of_gguf(folder, "Q4_K", 3, _louder), "gptq": lambda folder: of_gptq(folder, 4, 3)}


@functools.cache
def made(name):
    """-> a model of three layers: "gguf" in Q4_K, or "gptq" in 4 bits with desc_act"""
    folder = Path(_FOLDER.name, name)
    folder.mkdir()
    return MADE[name](folder)


def _louder(found):
    """Sub-scales and mins of 0 and 1, larger super-scales and small norms: float16 holds the results without d, too."""
    for name, (data, kind) in found.items():
        if kind == "Q4_K":
            blocks = data.reshape(len(data), -1, 144)
            blocks[:, :, 4:12] &= 0x01
            blocks[:, :, 12:16] &= 0x11
            halves = blocks[:, :, :4].copy().view("<f2") * 256
            blocks[:, :, :4] = halves.astype("<f2").view("u1")
        elif "norm" in name:
            data *= 0.003


def read_wrongly(mistake, name):
    """The matrices as a wrong reader of the file reads them."""

    def put(site):
        wrong = made(name).wrong[mistake]
        for path, module in site.hf.named_modules():
            if module in site.matrices:
                site.edit(module.weight, torch.from_numpy(wrong[f"{path}.weight"]))

    return put
