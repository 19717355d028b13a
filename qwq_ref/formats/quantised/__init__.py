"""Read quantised checkpoints in safetensors: AWQ, GPTQ and MLX."""

from ..quantisation import Settings, settings_of
from .source import QuantisedSource

__all__ = ["QuantisedSource", "Settings", "settings_of"]
