"""The child process that renders one chat template. `template_process.py` starts this file as a script.

A chat template is a program that came with the weights, so nobody vouches for it. Jinja's sandbox keeps it away from
Python's insides, but lets it use all time and memory. Templates have also escaped from that sandbox, mostly by way of
`str.format` and `attr` (CVE-2024-34359, CVE-2026-5760). So the operating system limits this process:

- Memory: RLIMIT_AS. macOS ignores it, so the parent watches the memory there.
- Time: a timer of the processor's time ends this process, and RLIMIT_CPU where a template stops the timer. A busy
  machine costs a template none of its time. The parent kills a process that gives no answer for long.
- Files, sockets, processes: none can be opened or started (root can still start processes).

A template that escapes can still read what this process holds: the conversation, and Python. Lists of filters and
attributes make an escape harder. Only public names of Jinja are used.

A message is 8 bytes of length, big-endian, and then JSON. The first message holds the template and its limits, and
each later one {"values": ..., "spelled": ...}: the variables of a rendering, and what `prepared` needs to know of them.
Each is answered with {"text": ...}, or {"error": ..., "line": ...}.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path += sys.argv[1:]  # the folders of Jinja: Python runs without site-packages here

import jinja2
import jinja2.debug  # Jinja would import it at the first error, when no file can be opened
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

NO_MEMORY = 3  # the exit status of a child that has no memory left to answer with
_ERROR_CHARS = 2000
_NAME = "<chat template>"  # the file name of the template's code


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_METHODS = {
    str: _words(
        "capitalize count endswith find index isalpha isdigit isspace join lower lstrip removeprefix removesuffix "
        "replace rsplit rstrip split splitlines startswith strip title upper"
    ),
    dict: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count index"),
}
# The public attributes of Jinja's own objects lead nowhere.
_RUNTIME = (BlockReference, LoopContext, Macro, Namespace, TemplateReference)
# Left out: filters that reach for attributes (attr), format texts, lay out text, or concern HTML.
_FILTERS = _words(
    "abs capitalize count d default dictsort first float indent int items join last length list lower map max min "
    "reject rejectattr replace reverse safe select selectattr sort string title trim unique upper"
)
_LOADING = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class NoText(str):
    """A null as the content of a message. It is none to a template that asks, and an empty text to one that does not.

    DeepSeek's templates ask whether the content is none; Qwen's call its methods.
    """

    def __eq__(self, other: object) -> bool:
        return other is None or str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:
        return "None"


class Arguments(dict[str, Any]):
    """The arguments of a tool call: an object, and its JSON text to a template that joins it to a text.

    Qwen's templates write the object as JSON themselves. DeepSeek's expect the text that the model wrote.
    """

    def __init__(self, values: dict[str, Any], spelled: str | None) -> None:
        super().__init__(values)
        self.__spelled = spelled

    def __str__(self) -> str:
        return repr(dict(self)) if self.__spelled is None else self.__spelled

    def __add__(self, other: object) -> str:
        return self.__text() + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self.__text() if isinstance(other, str) else NotImplemented

    def __text(self) -> str:
        return _tojson(self) if self.__spelled is None else self.__spelled


def prepared(values: dict[str, Any], spelled: list[tuple[int, int, str]]) -> dict[str, Any]:
    """Return the variables of a rendering, with `NoText` and `Arguments` in the messages.

    spelled  numbers of a message and of its tool call, whose arguments the caller gave as this JSON text
    """
    texts = {(message, call): text for message, call, text in spelled}
    for number, message in enumerate(values["messages"]):
        if message.get("content", "") is None:
            message["content"] = NoText()
        for place, call in enumerate(message.get("tool_calls") or ()):
            function = call["function"] if isinstance(call.get("function"), dict) else call
            if isinstance(function.get("arguments"), dict):
                function["arguments"] = Arguments(function["arguments"], texts.get((number, place)))
    return values


class _Generation(Extension):
    """{% generation %}, with which some templates mark the assistant's text. It prints its contents."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the settings of Hugging Face's templates, and with lists of what a template may use."""

    def __init__(self) -> None:
        # Without the optimizer, constant expressions wait for the rendering, which has the time limit.
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
        self.filters = {name: self.filters[name] for name in _FILTERS} | {"tojson": _tojson}
        texts = {name: _unless_null(self.tests[name]) for name in ("string", "iterable", "sequence")}
        self.tests = {**self.tests, **texts, "none": _is_none}
        self.globals = {
            "range": self.globals["range"],  # at most 100,000 long
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return isinstance(obj, _RUNTIME) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:
        """Leave `format` to `is_safe_attribute`, which refuses it. Jinja would allow it first."""

    def prepared(self, source: str) -> jinja2.Template:
        """Compile a template. Raises what Jinja and Python's compiler raise."""
        tree = self.parse(source)
        for node in tree.find_all(_LOADING):
            raise jinja2.TemplateSyntaxError("other templates cannot be loaded", node.lineno)
        for node in tree.find_all(nodes.EvalContextModifier):  # {% autoescape %}
            raise jinja2.TemplateSyntaxError("a prompt is not HTML; there is no autoescape", node.lineno)
        code = self.compile(tree, filename=_NAME)
        return jinja2.Template.from_code(self, code, self.globals)


def _is_none(value: Any) -> bool:
    return value is None or isinstance(value, NoText)


def _unless_null(test: Any) -> Callable[[Any], bool]:
    return lambda value: bool(test(value)) and not isinstance(value, NoText)


def _with_null(value: Any) -> Any:
    """Copy plain data, with None for `NoText`, which the library would write as a string."""
    if isinstance(value, (list, tuple)):
        return [_with_null(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    return None if isinstance(value, NoText) else value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as Hugging Face's templates expect it: not escaped for HTML, and in the order of the value."""
    plain = _with_null(value)
    return json.dumps(plain, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise SecurityError("the template uses an enormous date format")
    return datetime.now().strftime(form)


def rendered(template: jinja2.Template, values: dict[str, Any], max_chars: int) -> str:
    """Render a template into at most `max_chars` characters. Raises whatever the template's code raises."""
    pieces, size = [], 0
    for piece in template.root_render_func(template.new_context(values)):
        size += len(piece)
        if size > max_chars:
            raise SecurityError(f"the template makes a text of more than {max_chars:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def explained(problem: Exception, template: jinja2.Template | None, max_bytes: int) -> dict[str, Any]:
    """Return the answer that reports a problem, with the line of the template where it arose."""
    line = problem.lineno if isinstance(problem, jinja2.TemplateSyntaxError) else None
    trace = problem.__traceback__
    while template and trace is not None:
        if trace.tb_frame.f_code.co_filename == _NAME:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    if isinstance(problem, RecursionError):
        reason = "recurses too deeply"
    elif isinstance(problem, MemoryError):
        reason = f"the template needs more than {max_bytes:,} bytes of memory"
    elif isinstance(problem, jinja2.TemplateError):
        reason = problem.message or "fails"
    elif isinstance(problem, SyntaxError):  # from Python's compiler, whose line is one of the generated code
        reason = problem.msg
    else:
        reason = f"{type(problem).__name__}: {problem}"
    return {"error": reason[:_ERROR_CHARS], "line": line}


# --- The process ------------------------------------------------------------------------------------------------------


def _confine(max_bytes: int) -> None:
    """Give up files, sockets and processes, and all memory but `max_bytes` more than now. Nothing can be imported."""
    Sandbox().prepared("{{ 'a' }}")  # loads the codecs that Jinja's lexer needs
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        now = 1 << 28  # no /proc: more than Python and Jinja need
    for name in ("NOFILE", "FSIZE", "NPROC", "CORE"):
        _give_up(name, 0)
    try:
        _give_up("STACK", 1 << 23)  # the usual size; more would let a template recurse in C for longer
        _give_up("AS", now + max_bytes)
    except (OSError, ValueError):
        if sys.platform != "darwin":
            raise


def _give_up(name: str, limit: int) -> None:
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(which, (limit, limit))


def _allow_time(seconds: float) -> None:
    """Let the system end this process once it has computed for `seconds` more.

    The limit, which a template cannot take away, counts in whole seconds.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _receive() -> Any:
    """Return the next message. End the process if there is none, because the parent is gone."""
    size = sys.stdin.buffer.read(8)
    data = sys.stdin.buffer.read(int.from_bytes(size, "big"))
    if len(size) < 8 or len(data) < int.from_bytes(size, "big"):
        os._exit(0)
    return json.loads(data.decode("utf-8", "surrogatepass"))


def _packed(message: dict[str, Any]) -> bytes:
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "big") + data


def _answer(data: bytes) -> None:
    """Send an answer. Its time is over; the next request will have a time of its own."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main() -> None:
    start = _receive()
    seconds, max_chars, max_bytes = start["seconds"], start["max_chars"], start["max_bytes"]
    _confine(max_bytes)
    _allow_time(seconds)
    template = None
    try:
        template = Sandbox().prepared(start["source"])
        answer = _packed({"text": ""})
    except Exception as problem:
        answer = _packed(explained(problem, None, max_bytes))
    _answer(answer)
    while template:
        request = _receive()
        _allow_time(seconds)
        try:
            answer = _packed({"text": rendered(template, prepared(**request), max_chars)})
        except Exception as problem:  # a program that we did not write may raise anything
            answer = _packed(explained(problem, template, max_bytes))
        _answer(answer)


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(NO_MEMORY)
