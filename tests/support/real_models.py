"""Real GGUF files of Qwen2 models, if this machine has them."""

import os
from pathlib import Path

import pytest

QWEN_05B = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
QWEN_15B = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
R1_7B_HEAD = "deepseek-r1-distill-qwen-7b-q4_k_m.gguf.head"


def real_model(name):
    """Return the path of a file in the folder that QWQ_REF_MODELS names; skip the test without it."""
    folder = os.environ.get("QWQ_REF_MODELS")
    if folder is None or not Path(folder, name).is_file():
        pytest.skip(f"{name} is not here: set QWQ_REF_MODELS to the folder that holds it")
    return Path(folder, name)
