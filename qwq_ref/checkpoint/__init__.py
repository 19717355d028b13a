"""Files -> named arrays: safetensors, sharded checkpoints, and the Hugging Face cache."""

from .generation_config import GenerationConfig
from .hub import resolve
from .reader import Checkpoint

__all__ = ["Checkpoint", "GenerationConfig", "resolve"]
