"""Memory: a process's own peak, and a model ten times as large as the limit."""

import hashlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.formats import Checkpoint
from qwq_ref.formats.write import SafetensorsStream, write_json
from qwq_ref.oracle import Golden
from tests.support.models import (
    config_values,
)


def test_the_peak_of_a_process_is_its_own():
    """getrusage of a new program includes the memory of its parent; peak_bytes does not."""
    code = "from qwq_ref.host.memory import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 20 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.long
def test_a_model_ten_times_as_large_as_memory(tmp_path, request):
    """64 layers, 1.9 GB in bfloat16, recorded within a tenth of that."""
    config = Config.from_dict(
        config_values(
            num_hidden_layers=64,
            hidden_size=1024,
            intermediate_size=3712,
            vocab_size=32768,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=64,
        )
    )
    folder = tmp_path / "model"
    folder.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    write_json(folder / "config.json", config.to_dict())
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        stream = SafetensorsStream(file, config.tensors(), "BF16")
        for name, shape in config.tensors().items():
            value = rng.standard_normal(shape, np.float32)
            stream.append(name, 1 + value / 10 if "norm" in name else value * np.float32(shape[-1] ** -0.5))
    size = (folder / "model.safetensors").stat().st_size
    assert size > 1.85e9
    limit = size // 10
    script = (
        "import sys; from qwq_ref.cli import main; status = main(sys.argv[1:]);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')));"
        "raise SystemExit(status)"
    )
    command = [
        "golden",
        "record",
        "-m",
        folder,
        "--ids",
        "5,77,1234,31000,2,9",
        "--decode",
        "2",
        "-o",
        tmp_path / "pack",
    ]
    command += ["--max-memory", f"{limit / 2**20:.0f}M", "-t", "1"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < limit
    with Golden.open(tmp_path / "pack") as golden:
        golden.verify()
        assert len(golden.manifest.sizes) == 64 * 21 + 5
        with Checkpoint.open(folder) as checkpoint:
            for name in ("model.norm.weight", "model.layers.63.mlp.down_proj.weight"):
                digest = hashlib.sha256(checkpoint[name].astype("<f4").tobytes()).hexdigest()
                assert golden.manifest.weights[name] == digest
