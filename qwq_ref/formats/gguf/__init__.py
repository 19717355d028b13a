"""Read GGUF files, the format of llama.cpp."""

from .header import GGUFTensor, Header, Values, read_header

__all__ = ["GGUFTensor", "Header", "Values", "read_header"]
