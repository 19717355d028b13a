"""Read and write a model's files: checkpoints, GGUF files, packed weights, and the Hugging Face cache."""

from .checkpoint import Checkpoint
from .generation_config import GenerationConfig
from .gguf import GGUFSource
from .hub import Confirm, Download, Inspect, resolve
from .source import Source, Tensors, open_floats, open_source, read_config, read_generation_config

__all__ = [
    "Checkpoint",
    "Confirm",
    "Download",
    "GGUFSource",
    "GenerationConfig",
    "Inspect",
    "Source",
    "Tensors",
    "open_floats",
    "open_source",
    "read_config",
    "read_generation_config",
    "resolve",
]
