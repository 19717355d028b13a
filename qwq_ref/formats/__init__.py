"""Files -> named arrays: safetensors, sharded checkpoints, and the Hugging Face cache."""

from .checkpoint import Checkpoint
from .generation_config import GenerationConfig
from .hub import resolve

__all__ = ["Checkpoint", "GenerationConfig", "resolve"]
