"""Chat templates: from a conversation to the ids of a prompt.

Two parties are not trusted here, in different ways.

The *conversation*: its text must not become a control token. A user who writes `<|im_end|>` must not end their turn.
`ChatTemplate.encode` guarantees that with a mask (`mask.py`), whatever the template does with the text.

The *template*: a program that came with the weights. It runs in a child process with limits (`template_process.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import TemplateError
from ..files import START, StrPath, foreign, read_file, read_json
from .mask import Mask, strings_of
from .messages import Message, checked_conversation
from .template_process import Limits, TemplateProcess
from .tokenizer import Tokenizer

_TEMPLATE_BYTES = 1 << 16  # three times the longest in use; compiling takes time that grows with the length
_CONFIG_BYTES = 1 << 22
_SPOKEN = ("assistant", "content")


class ChatTemplate:
    """A chat template, in a child process of its own. Safe to share between threads. Made by `load_chat_template`.

    The constructor does not wait for the child, which takes a tenth of a second to start. An error in the template
    appears at the first use, or in `check`.

    variables  strings that the tokenizer's configuration lends to templates: bos_token, eos_token and the like
    seconds    the longest time that a rendering may take
    max_chars  the longest text that a rendering may make
    max_bytes  the memory that a rendering may use: conversation, values and text together

    Raises TemplateError for a template that is too long, and where no process can be started.
    """

    def __init__(
        self,
        source: str,
        file: StrPath | None = None,
        variables: dict[str, str] | None = None,
        *,
        seconds: float = 2.0,
        max_chars: int = 1 << 24,
        max_bytes: int = 1 << 28,
    ) -> None:
        if len(source) > _TEMPLATE_BYTES:
            raise TemplateError(file, None, f"is {len(source):,} characters long; at most {_TEMPLATE_BYTES:,} are read")
        self.source = source
        self.file = file
        self.variables = dict(variables or {})
        self._process = TemplateProcess(source, file, Limits(seconds, max_chars, max_bytes))

    def check(self) -> None:
        """Wait until the template is compiled. Raises TemplateError for one that does not compile."""
        self._process.check()

    def render(
        self, messages: list[Message], tools: list[Any] | None = None, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """Return the prompt as text, for people. Never encode it: a user's text could pass for control tokens.

        messages  dicts with `role` (system, user, assistant, tool) and `content`: a string, or a list of parts
                  {"type": "text", "text": ...}, which are joined; an assistant's may be None beside `tool_calls`
        tools     JSON schemas of functions
        extra     further variables of the template

        Raises TemplateError.
        """
        return self._render(*checked_conversation(messages, tools, extra), add_generation_prompt)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: list[Message],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[int]:
        """Return the prompt as ids; arguments as for `render`. Only the template's own text becomes control tokens.

        The ids equal those of Hugging Face's apply_chat_template, unless the conversation spells an added token.
        An assistant's text keeps <think> and the other added tokens that are not special, so that the template can
        cut earlier reasoning. Raises TemplateError, and TokenizerError for a lone surrogate.
        """
        chat, schemas, more = checked_conversation(messages, tools, extra)
        mask = Mask(tokenizer, [self.source, *self.variables.values(), *strings_of([chat, schemas, more])])
        masked = [
            {
                key: value if key == "role" else mask.hide(value, assistant=(message["role"], key) == _SPOKEN)
                for key, value in message.items()
            }
            for message in chat
        ]
        try:
            text = self._render(masked, mask.hide(schemas), mask.hide(more), add_generation_prompt)
        except TemplateError as problem:
            raise TemplateError(problem.file, problem.field, mask.show(problem.problem)) from None
        ids: list[int] = []
        for part in tokenizer.split_added(text):
            ids += [part] if isinstance(part, int) else tokenizer.encode(mask.show(part))
        return ids

    def _render(self, messages: Any, tools: Any, extra: dict[str, Any], add_generation_prompt: bool) -> str:
        conversation = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return self._process.render({**self.variables, **extra, **conversation})


def load_chat_template(folder: StrPath, override_file: StrPath | None = None) -> ChatTemplate | None:
    """Return the template of a model, or None for a model that has none, such as a base model.

    The first of these that exists: `override_file`, chat_template.jinja, and `chat_template` in tokenizer_config.json,
    where the one named "default" counts if there are several. Raises TemplateError.
    """
    configuration = Path(folder) / "tokenizer_config.json"
    values = read_json(configuration, _CONFIG_BYTES, TemplateError) if configuration.exists() else {}
    variables = {}
    for name, value in values.items():
        if name.endswith("_token"):  # a string, or an object around one
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                variables[name] = content

    own = Path(folder) / "chat_template.jinja"
    if override_file is not None or own.exists():
        file = Path(override_file if override_file is not None else own)
        data = read_file(file, _TEMPLATE_BYTES, TemplateError)
        if kind := foreign(data[:START]):
            raise TemplateError(file, None, f"is not a template, but {kind}")
        try:
            source: Any = data.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise TemplateError(file, None, f"is not UTF-8 (byte {problem.start})") from None
        return ChatTemplate(source, file, variables)

    source = values.get("chat_template")
    if source is None:
        return None
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
        source = named[0].get("template") if named else None
    if not isinstance(source, str):
        raise TemplateError(configuration, "chat_template", "must be a template, or a list with one named default")
    return ChatTemplate(source, configuration, variables)
