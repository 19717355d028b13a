"""Chat templates: from a conversation to the ids of a prompt.

Two parties are not trusted here, in different ways.

The *conversation*: its text must not become a control token. A user who writes `<|im_end|>` must not end their turn.
`ChatTemplate.encode` guarantees that with a mask (`mask.py`), whatever the template does with the text.

The *template*: a program that came with the weights. It runs in a child process with limits (`template_process.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TemplateError
from ..files import START, StrPath, foreign, is_gguf, read_file, read_json
from ..text_files import DEFAULT, MORE_TEMPLATES, OLD_TEMPLATE, TEMPLATE, TOOL_USE
from .mask import Mask, strings_of
from .messages import Conversation, Message, checked_conversation
from .template_gguf import gguf_templates, gguf_variables
from .template_process import Limits, TemplateProcess
from .tokenizer import Tokenizer, check_fits
from .tokenizer_config import read_tokenizer_config

_TEMPLATE_BYTES = 1 << 16  # three times the longest in use; compiling takes time that grows with the length
_JSON_BYTES = 1 << 22
_SPOKEN = ("assistant", "content")


class ChatTemplate:
    """A chat template, in a child process of its own. Safe to share between threads. Made by `load_chat_template`.

    The constructor does not wait for the child, which takes a tenth of a second to start. An error in the template
    appears at the first use, or in `check`.

    source      the template
    file        where it comes from, for messages
    variables   strings that the tokenizer's configuration lends to templates: bos_token, eos_token and the like
    with_tools  a template for conversations with tools, and its file; None: `source`
    seconds     the longest time that a rendering may take
    max_chars   the longest text that a rendering may make
    max_bytes   the memory that a rendering may use: conversation, values and text together

    Raises TemplateError for a template that is empty or too long, and where no process can be started.
    """

    def __init__(
        self,
        source: str,
        file: StrPath | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        with_tools: tuple[str, StrPath | None] | None = None,
        seconds: float = 2.0,
        max_chars: int = 1 << 24,
        max_bytes: int = 1 << 28,
    ) -> None:
        limits = Limits(seconds, max_chars, max_bytes)
        self.source = source
        self.file = file
        self.variables = dict(variables or {})
        self._plain = _Source(source, file, limits)
        self._process = self._plain.process
        self._with_tools = self._plain if with_tools is None else _Source(*with_tools, limits, start=False)

    def check(self) -> None:
        """Wait until the template is compiled. Raises TemplateError for one that does not compile."""
        self._process.check()

    def render(
        self, messages: list[Message], tools: list[Any] | None = None, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """Return the prompt as text, for people. Never encode it: a user's text could pass for control tokens.

        messages  dicts with `role` (system, user, assistant, tool) and `content`: a string, or a list of parts
                  {"type": "text", "text": ...}, which are joined; an assistant's may be None beside `tool_calls` or
                  `reasoning_content`. The arguments of a call are an object, or its JSON text
        tools     JSON schemas of functions; with a list, a template named tool_use comes first, if the model has one
        extra     further variables of the template

        Raises TemplateError.
        """
        return self._render(checked_conversation(messages, tools, extra), add_generation_prompt)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: list[Message],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        most: int | None = None,
        **extra: Any,
    ) -> list[int]:
        """Return the prompt as ids; arguments as for `render`. Only the template's own text becomes control tokens.

        The ids equal those of Hugging Face's apply_chat_template, unless the conversation spells an added token. They
        begin with `tokenizer.bos` once, if `tokenizer.adds_bos`, whether or not the template writes it.
        An assistant's text keeps <think> and the other added tokens that are not special, so that the template can
        cut earlier reasoning. Raises TemplateError, also for an empty prompt, and TokenizerError for a lone surrogate.
        most: UsageError for a prompt that has surely more ids, before it is cut into ids.
        """
        talk = checked_conversation(messages, tools, extra)
        chosen = self._chosen(talk)
        spelled = [text for _, _, text in talk.spelled]
        seen = [*self.variables.values(), *strings_of([talk.messages, talk.tools, talk.extra]), *spelled]
        mask = Mask(tokenizer, chosen.source, seen)
        hidden = _hidden(mask, talk, loose=False)
        text = self._render_hidden(mask, hidden, add_generation_prompt)
        loosened = _hidden(mask, talk, loose=True)
        if loosened.messages != hidden.messages:
            # The template may look for markers that are no tokens. The looser mask shows it these.
            with contextlib.suppress(TemplateError):
                looser = self._render_hidden(mask, loosened, add_generation_prompt)
                if mask.controls(looser) == mask.controls(text):
                    text = looser
        ids: list[int] = []
        parts = tokenizer.split_added(text)
        if most is not None:
            check_fits(
                sum(1 if isinstance(part, int) else tokenizer.least(mask.show(part)) for part in parts),
                most,
                least=True,
            )
        for part in parts:
            ids += [part] if isinstance(part, int) else tokenizer.encode(mask.show(part))
        if not ids:
            raise TemplateError(chosen.file, None, "makes an empty prompt of this conversation")
        return tokenizer.begin(ids)

    def turn_end(self, tokenizer: Tokenizer) -> int | None:
        """Return the id of the added token that the template writes after an assistant's text, or None."""
        said = "This is an answer."
        conversation = [{"role": "user", "content": "This is a question."}, {"role": "assistant", "content": said}]
        try:
            text = self.render(conversation, add_generation_prompt=False)
        except TemplateError:
            return None
        _, found, after = text.rpartition(said)
        first = next(iter(tokenizer.split_added(after.lstrip())), None) if found else None
        return first if isinstance(first, int) else None

    def _render_hidden(self, mask: Mask, hidden: Conversation, add_generation_prompt: bool) -> str:
        try:
            return self._render(hidden, add_generation_prompt)
        except TemplateError as problem:
            raise TemplateError(problem.file, problem.field, mask.show(problem.problem)) from None

    def _chosen(self, talk: Conversation) -> _Source:
        return self._plain if talk.tools is None else self._with_tools

    def _render(self, talk: Conversation, add_generation_prompt: bool) -> str:
        given = {"messages": talk.messages, "tools": talk.tools, "add_generation_prompt": add_generation_prompt}
        return self._chosen(talk).process.render({**self.variables, **talk.extra, **given}, talk.spelled)


class _Source:
    """One template and its process."""

    def __init__(self, source: str, file: StrPath | None, limits: Limits, *, start: bool = True) -> None:
        _check_source(source, file)
        self.source = source
        self.file = file
        self.process = TemplateProcess(source, file, limits, start=start)


def _hidden(mask: Mask, talk: Conversation, *, loose: bool) -> Conversation:
    messages = [
        {
            key: value if key == "role" else mask.hide(value, assistant=(message["role"], key) == _SPOKEN, loose=loose)
            for key, value in message.items()
        }
        for message in talk.messages
    ]
    spelled = [(message, call, mask.hide(text)) for message, call, text in talk.spelled]
    return Conversation(messages, mask.hide(talk.tools), mask.hide(talk.extra), spelled)


def _check_source(source: str, file: StrPath | None, field: str | None = None) -> None:
    """Raise TemplateError for a template that is empty or too long."""
    if len(source) > _TEMPLATE_BYTES:
        raise TemplateError(file, field, f"is {len(source):,} characters long; at most {_TEMPLATE_BYTES:,} are read")
    if not source.strip():
        raise TemplateError(file, field, "holds an empty chat template")


def load_chat_template(
    folder: StrPath, override_file: StrPath | None = None, fields: Mapping[str, Any] | None = None
) -> ChatTemplate | None:
    """Return the template of a model, or None for a model that has none, such as a base model.

    The first of these that exists: `override_file`, chat_template.jinja, `chat_template` in tokenizer_config.json, and
    chat_template.json. A JSON file may hold several templates, by name: "default" counts, and "tool_use" where a
    conversation has tools. The folder additional_chat_templates may hold these two as well.

    A GGUF file in place of the folder holds templates of its own. Only `override_file` comes before them. `fields` are
    those of its header, for a caller that has read it.
    Raises TemplateError, and CheckpointError for a bad header of a GGUF file.
    """
    folder = Path(folder)
    if is_gguf(folder):
        return _of_gguf(folder, override_file, fields)
    beside = read_tokenizer_config(folder, TemplateError)
    if override_file is not None:
        return ChatTemplate(read_template(override_file), override_file, beside.named)
    files = [(DEFAULT, TEMPLATE), *MORE_TEMPLATES.items()]  # a later one of the same name counts
    found = {name: (_read(folder / file), folder / file) for name, file in files if os.path.lexists(folder / file)}
    if DEFAULT not in found:
        old = folder / OLD_TEMPLATE
        values = read_json(old, _JSON_BYTES, TemplateError) if os.path.lexists(old) else {}
        for file, value in ((beside.file, beside.values.get("chat_template")), (old, values.get("chat_template"))):
            if value is not None:
                found = _named(value, file) | found
                break
    if DEFAULT not in found:
        return None
    return ChatTemplate(*found[DEFAULT], beside.named, with_tools=found.get(TOOL_USE))


def read_template(file: StrPath) -> str:
    """Return the template in a file. Raises TemplateError."""
    source = _read(Path(file))
    _check_source(source, file)
    return source


def _of_gguf(file: Path, override_file: StrPath | None, fields: Mapping[str, Any] | None) -> ChatTemplate | None:
    if fields is None:
        from ..formats.gguf import read_header  # here, because it imports NumPy

        fields = read_header(file, whole=False).fields
    variables = gguf_variables(file, fields)
    if override_file is not None:
        return ChatTemplate(read_template(override_file), override_file, variables)
    found = gguf_templates(file, fields)
    for source, field in found.values():
        _check_source(source, file, field)
    sources = {name: (source, file) for name, (source, _) in found.items()}
    if DEFAULT not in sources:
        return None
    return ChatTemplate(*sources[DEFAULT], variables, with_tools=sources.get(TOOL_USE))


def _read(file: Path) -> str:
    data = read_file(file, _TEMPLATE_BYTES, TemplateError)
    if kind := foreign(data[:START]):
        raise TemplateError(file, None, f"is not a template, but {kind}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise TemplateError(file, None, f"is not UTF-8 (byte {problem.start})") from None


def _named(value: Any, file: Path) -> dict[str, tuple[str, Path]]:
    """Return the templates of a field `chat_template`, by name: one text, a list of named ones, or an object."""
    if isinstance(value, list):
        value = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = value if isinstance(value, dict) else {DEFAULT: value}
    templates = {name: (text, file) for name, text in named.items() if isinstance(text, str)}
    if DEFAULT not in templates or (TOOL_USE in named and TOOL_USE not in templates):
        raise TemplateError(file, "chat_template", "must be a template, or a list with one named default")
    return templates
