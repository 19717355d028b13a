"""From text to token ids and back: tokenizer, chat template, reasoning."""

from ..text_files import FILES
from .fim import fim_ends, fim_ids, read_gap
from .template import ChatTemplate, load_chat_template
from .template_process import start_templates
from .thinking import ThinkingSplitter, prompt_is_thinking, split_thinking
from .tokenizer import StreamDecoder, Tokenizer, check_fits
from .tokenizer_file import load_tokenizer
from .tokenizer_gguf import gguf_tokenizer
from .tools import ToolParser

__all__ = [
    "FILES",
    "ChatTemplate",
    "StreamDecoder",
    "ThinkingSplitter",
    "Tokenizer",
    "ToolParser",
    "check_fits",
    "fim_ends",
    "fim_ids",
    "gguf_tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "prompt_is_thinking",
    "read_gap",
    "split_thinking",
    "start_templates",
]
