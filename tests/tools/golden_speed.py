"""Time and memory of the oracle: recording a 64-layer model, comparing a gigabyte.

python -m tests.tools.golden_speed FOLDER [TOKENS]

The first run writes a random model of 1.9 GB and its pack into FOLDER; a second run only compares. The default of 140
tokens makes a pack of one gigabyte.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from qwq_ref.config import Config
from qwq_ref.formats.write import SafetensorsStream

VALUES = {
    "model_type": "qwen2",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 64,
    "vocab_size": 8000,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
}
PEAK = "import sys, resource; from qwq_ref.cli import main; main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # noqa: E501


def write_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(VALUES))
    config = Config.from_dict(VALUES)
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        stream = SafetensorsStream(file, config.tensors(), "BF16")
        for name, shape in config.tensors().items():
            value = rng.standard_normal(shape, np.float32)
            stream.append(name, 1 + value / 10 if "norm" in name else value / np.float32(shape[-1] ** 0.5))


def run(*arguments):
    """-> (seconds, peak resident MiB) of one `qwq golden` command."""
    since = time.perf_counter()
    command = [sys.executable, "-c", PEAK, "golden", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - since, int(done.stdout.split()[-1]) / 1024


def main(folder, tokens):
    model, pack = folder / "model", folder / "pack"
    if not model.exists():
        write_model(model)
    size = (model / "model.safetensors").stat().st_size / 2**20
    if not pack.exists():
        ids = ",".join(str(1 + i) for i in range(tokens))
        seconds, peak = run(
            "record", "-m", model, "-o", pack, "--ids", ids, "--max-memory", f"{max(size / 10, 400):.0f}M"
        )
        print(f"recorded {size:.0f} MiB of weights, {tokens} tokens: {seconds:.0f} s, {peak:.0f} MiB resident")
    seconds, peak = run("compare", pack, pack)
    kept = sum(file.stat().st_size for file in pack.glob("*.safetensors")) / 1e9
    print(f"compared {kept:.2f} GB with as much: {seconds:.1f} s, {peak:.0f} MiB resident")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 140)
