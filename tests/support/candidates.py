"""Tensors with the names and shapes of taps, and files that hold them."""

import functools
import io
import json
import struct

import numpy as np
import yaml

from qwq_ref.config import Config
from qwq_ref.errors import GoldenError
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.graph import (
    phases_of,
    shape_of,
    tap_names,
)
from tests.support import refusals
from tests.support.models import config_values

VALUES = config_values()
CONFIG = Config.from_dict(VALUES)
IDS = [3, 1, 4, 1, 5, 9, 2]
PHASES = phases_of(IDS, 2)
Q, NORM = "model.layers.0.self_attn.q_proj", "model.norm"
refused = functools.partial(refusals.refused, GoldenError, 600)


def random_taps(config=CONFIG, phases=PHASES, seed=0):
    """{(phase, tap): float32 array}: no model's numbers, but all different."""
    rng = np.random.default_rng(seed)
    taps = {}
    for phase in phases:
        for tap in tap_names(config):
            taps[phase.name, tap] = rng.standard_normal(shape_of(tap, config, phase)).astype(np.float32)
            if tap.endswith("scores"):
                taps[phase.name, tap][:, 0, phase.start + 1 :] = -np.inf
    return taps


TAPS = random_taps()


def npy(array, version=(1, 0)):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version=version)
    return stream.getvalue()


def header(text, data=b"", version=b"\1\0", length=None):
    """Return a .npy file made by hand."""
    width = "<H" if version == b"\1\0" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(text) if length is None else length) + text + data


def write(folder, files):
    """Write {name: bytes, or an array for a .npy} -> the folder"""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else npy(content))
    return folder


def write_map(path, values):
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))
    return path


def in_npy(folder, taps):
    write(folder, {f"{phase}/{tap}.npy": array for (phase, tap), array in taps.items()})
    return folder


def by_phase(taps):
    return {phase: {tap: array for (p, tap), array in taps.items() if p == phase} for phase, _ in taps}


def in_safetensors(folder, taps):
    for phase, arrays in by_phase(taps).items():
        write_safetensors(folder / f"{phase}.safetensors", arrays, "F32")
    return folder


GOOD = {
    "tensors": {
        "blk.{layer}.attn_q": "self_attn.q_proj",
        "blk.{layer}.kv": {"split": ["self_attn.k_proj", {"tap": "self_attn.v_proj"}]},
        "norm": {"tap": NORM},
    }
}
