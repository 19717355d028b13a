"""Read and write a model's files: checkpoints, packed weights, and the Hugging Face cache."""

from .checkpoint import Checkpoint
from .generation_config import GenerationConfig
from .hub import Confirm, Download, Inspect, resolve
from .source import Source, Tensors, open_source

__all__ = [
    "Checkpoint",
    "Confirm",
    "Download",
    "GenerationConfig",
    "Inspect",
    "Source",
    "Tensors",
    "open_source",
    "resolve",
]
