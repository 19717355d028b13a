"""Read GGUF files, the format of llama.cpp."""

from .header import GGUFTensor, Header, Values, metadata_only, read_header
from .source import GGUFSource

__all__ = ["GGUFSource", "GGUFTensor", "Header", "Values", "metadata_only", "read_header"]
