"""Read GGUF files, the format of llama.cpp."""

from .header import GGUFTensor, Header, Values, read_header
from .source import GGUFSource

__all__ = ["GGUFSource", "GGUFTensor", "Header", "Values", "read_header"]
