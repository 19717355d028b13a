"""Chat templates: a conversation -> the text, or better the ids, of a prompt.

Two parties are not trusted here, in different ways.

The *conversation*. Whatever its text spells, it must not become a control token: a user who writes `<|im_end|>` must
not end their turn. `ChatTemplate.encode` sees to that, whatever the template does with the text.

The *template*, a program that came with the weights. It runs in a sandbox with a budget: see `sandbox.py`.

Importing this module imports Jinja; `qwq_ref.text` puts that off until a template is wanted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn

import jinja2

from ..errors import TemplateError
from ..files import StrPath, read_file, read_json
from .sandbox import Sandbox
from .tokenizer import Tokenizer

_TEMPLATE_BYTES = 1 << 16  # three times the longest in use; compiling takes time that grows with the length
_CONFIG_BYTES = 1 << 22
_ROLES = ("system", "user", "assistant", "tool")
_DEPTH = 64  # of messages and tools

Message = dict[str, Any]


class ChatTemplate:
    """A compiled template. Immutable, and safe to share between threads. Made by `load_chat_template`.

    variables  what the tokenizer's configuration lends to templates: bos_token, eos_token and the like
    seconds    the longest that a rendering may take; max_chars the longest text it may make;
    max_bytes  the memory that it may allocate in all, intermediate values included

    Raises TemplateError for a template that does not compile.
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
        self.source = source
        self.file = file
        self.variables = dict(variables or {})
        self._limits = (seconds, max_chars, max_bytes)
        if len(source) > _TEMPLATE_BYTES:
            raise TemplateError(file, None, f"is {len(source):,} characters long; at most {_TEMPLATE_BYTES:,} are read")
        try:
            # Jinja works out constant expressions as it compiles, with the same guarded filters and the same budget.
            code = Sandbox(*self._limits).compile(source, filename="<chat template>")
        except Exception as problem:
            self._fail(problem, getattr(problem, "lineno", None) if isinstance(problem, jinja2.TemplateError) else None)
        assert isinstance(code, CodeType)
        self._code = code

    def render(
        self, messages: list[Message], tools: list[Any] | None = None, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The prompt as text. To be read by people: encoded, text that users wrote could pass for control tokens.

        messages  dicts with `role` (system, user, assistant, tool) and `content`: a string, or a list of parts
                  {"type": "text", "text": ...}, which are joined; an assistant's may be None beside `tool_calls`
        tools     JSON schemas of functions; extra: further variables of the template

        Raises TemplateError.
        """
        return self._render(*_conversation(messages, tools, extra), add_generation_prompt)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: list[Message],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[int]:
        """The prompt as ids; arguments as for `render`. Only the template's own text becomes control tokens.

        Where the conversation spells no added token, these are the ids that Hugging Face's apply_chat_template
        gives. In what an assistant said, <think> and other added tokens that are not special stay tokens, so that
        the template can cut earlier reasoning. Raises TemplateError, and TokenizerError for a lone surrogate.
        """
        chat, schemas, more = _conversation(messages, tools, extra)
        mask = _Mask(tokenizer, [self.source, *self.variables.values(), *_strings([chat, schemas, more])])
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
        # A sandbox for each rendering, since it holds the budget; the code is compiled once.
        sandbox = Sandbox(*self._limits)
        template = jinja2.Template.from_code(sandbox, self._code, sandbox.globals)
        values = {
            **self.variables,
            **extra,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return sandbox.concat(template.root_render_func(template.new_context(values)))
        except Exception as problem:  # a program that we did not write may raise whatever it likes
            line, trace = None, problem.__traceback__
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == self._code.co_filename:
                    line = template.get_corresponding_lineno(trace.tb_lineno)
                trace = trace.tb_next
            self._fail(problem, line)

    def _fail(self, problem: Exception, line: int | None) -> NoReturn:
        if isinstance(problem, RecursionError):
            reason = "recurses too deeply"
        elif isinstance(problem, MemoryError):
            reason = "runs out of memory"
        elif isinstance(problem, jinja2.TemplateError):
            reason = problem.message or "fails"
        elif isinstance(problem, SyntaxError):  # from Python's own compiler, and its place is in generated code
            reason = problem.msg
        else:
            reason = f"{type(problem).__name__}: {problem}"
        raise TemplateError(self.file, f"line {line}" if line else None, reason) from None


def load_chat_template(folder: StrPath, override_file: StrPath | None = None) -> ChatTemplate | None:
    """The template of a model: `override_file`, else chat_template.jinja, else that in tokenizer_config.json, the
    "default" one if it has several; None for a model that has none, such as a base model. Raises TemplateError.
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
        try:
            source: Any = read_file(file, _TEMPLATE_BYTES, TemplateError).decode("utf-8")
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


# --- The conversation: checked, then masked ---------------------------------------------------------------------------

_SPOKEN = ("assistant", "content")


def _conversation(messages: Any, tools: Any, extra: dict[str, Any]) -> tuple[list[Message], Any, dict[str, Any]]:
    """Messages, tools and variables as plain data, so that no object of the caller's reaches the template."""
    if not isinstance(messages, list) or not messages:
        raise TemplateError(None, "messages", "must be a list of at least one message")
    chat = [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if tools is not None and not isinstance(tools, list):
        raise TemplateError(None, "tools", "must be a list of objects")
    for number, tool in enumerate(tools or []):
        if not isinstance(tool, dict):
            raise TemplateError(None, f"tools[{number}]", "must be an object")
    return chat, _plain(tools, "tools"), {name: _plain(value, name) for name, value in extra.items()}


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise TemplateError(None, where, "must be an object with role and content")
    # null means absent, as in Hugging Face; templates ask `is defined`.
    plain: Message = {key: value for key, value in _plain(message, where).items() if value is not None}
    role, content = plain.get("role"), plain.get("content")
    if role not in _ROLES:
        raise TemplateError(None, f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    calls = plain.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or any(not isinstance(call, dict) for call in calls)):
        raise TemplateError(None, f"{where}.tool_calls", "must be a list of objects")
    if content is None and role == "assistant" and calls:
        content = ""  # clients send null; Qwen's templates would call its methods
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise TemplateError(None, f"{where}.content[{number}]", "is not text; this model reads nothing else")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TemplateError(None, f"{where}.content", "must be a string or a list of text parts")
    return {**plain, "content": content}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A deep copy that consists of JSON's own types."""
    if depth > _DEPTH:
        raise TemplateError(None, where[:100], "is nested too deeply")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass, only the text
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)]
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise TemplateError(None, where, "has a key that is not a string")
        return {str.__str__(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise TemplateError(None, where, f"is a {type(value).__name__}, which JSON does not have")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_strings, value))
    elif isinstance(value, dict):
        yield from value
        yield from itertools.chain.from_iterable(map(_strings, value.values()))


class _Mask:
    """Keeps untrusted text from being taken for added tokens: `hide` before a template runs, `show` afterwards.

    In untrusted text, each character with which an added token could begin or end (`<` and `>`, in Qwen's) becomes
    a private-use character that occurs nowhere else. No token can then begin or end there, however the template cuts,
    strips or joins the text; and as one character replaces one, all lengths stay. Two things follow. A template that
    looks for `<` in what a user wrote does not find it. And one that itself writes `<` + text + `>` can still make a
    token, which is then its own making.

    Characters that programs and keys are made of (letters, digits, `_`, white space) are only replaced within whole
    tokens, or a tokenizer with an added token "name" would hide `tool.name` from the template.
    """

    def __init__(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        ends = sorted({char for token in tokenizer.added for char in (token[0], token[-1])})
        present = "".join([*texts, *tokenizer.added])
        used = set(present)
        # A template may write the character as JSON or Python escapes it; that has to be as unmistakable.
        used.update(chr(int(digits, 16)) for digits in re.findall(r"\\u([0-9a-fA-F]{4})", present))
        free = (char for char in map(chr, range(0xE000, 0xF900)) if char not in used)
        self._hide = dict(zip(ends, free, strict=False))
        if len(self._hide) < len(ends):
            raise TemplateError(None, "messages", "use every private-use character there is")
        self._show = {ord(mask): char for char, mask in self._hide.items()}
        self._escapes = {f"\\u{code:04x}": char for code, char in self._show.items()}
        self._live = {token for token, identity in tokenizer.added.items() if identity not in tokenizer.special}
        anywhere = "".join(char for char in ends if not (char.isalnum() or char.isspace() or char == "_"))
        tokens = sorted(tokenizer.added, key=len, reverse=True)
        choices = [*map(re.escape, tokens), *([f"[{re.escape(anywhere)}]"] if anywhere else [])]
        self._pattern = re.compile("|".join(choices) or "(?!)")
        self._table = str.maketrans(self._hide)

    def hide(self, value: Any, *, assistant: bool = False) -> Any:
        """Plain data with its strings masked, keys too. `assistant` keeps the tokens that are not special."""
        if isinstance(value, str):
            keep = self._live if assistant else frozenset()
            return self._pattern.sub(lambda m: m[0] if m[0] in keep else m[0].translate(self._table), value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value

    def show(self, text: str) -> str:
        for escape, char in self._escapes.items():
            text = text.replace(escape, char)
        return text.translate(self._show)
