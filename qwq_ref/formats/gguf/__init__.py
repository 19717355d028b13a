"""Read GGUF files, the format of llama.cpp."""

from .arrays import Values
from .header import GGUFTensor, Header, metadata_only, read_header
from .source import GGUFSource

__all__ = ["GGUFSource", "GGUFTensor", "Header", "Values", "metadata_only", "read_header"]
