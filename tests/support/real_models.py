"""Real GGUF files of Qwen2 models, if this machine has them. Tests that read them are marked `real`."""

import os
from pathlib import Path

import pytest

QWEN_05B = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
QWEN_15B = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
R1_7B_HEAD = "deepseek-r1-distill-qwen-7b-q4_k_m.gguf.head"
VARIABLE = "QWQ_REF_MODELS"
tier = False  # whether the running test is marked


def missing():
    """Return the reason for which this machine has no real files, or None if it has a folder for them."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return "set QWQ_REF_MODELS to a folder of published model files"
    return None if Path(folder).is_dir() else f"QWQ_REF_MODELS is {folder}, which is no folder"


def real_model(name):
    """Return the path of a file in the folder that QWQ_REF_MODELS names; skip the test without it."""
    assert tier, "a test that reads a real file needs pytest.mark.real"
    folder = os.environ.get(VARIABLE)
    if folder is None or not Path(folder, name).is_file():
        pytest.skip(f"{name} is not here: set QWQ_REF_MODELS to the folder that holds it")
    return Path(folder, name)
