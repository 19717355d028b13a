"""A sandbox for chat templates: Jinja's own, with lists of what a template may use and a budget of time and memory.

A template is a program that came with the weights. Jinja's sandbox keeps it away from Python's insides (and has been
escaped from, by way of `str.format` and `attr` above all: CVE-2024-34359, CVE-2026-5760), but lets it use all time and
memory. A time limit alone does not help: no signal or tracer interrupts one long operation in C.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.compiler import operators as compare_operators
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_STEP = 64  # bytes charged for whatever allocates little: 2**28 of them are at most 4 million steps
_INT_BITS = 4096
_NESTING = 100


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
# Jinja's own objects show nothing more than their public attributes, none of which leads anywhere.
_RUNTIME = (BlockReference, LoopContext, Macro, Namespace, TemplateReference)
_CONTAINERS: tuple[Any, ...] = (dict, list, tuple, *map(type, ({}.keys(), {}.values(), {}.items())))
# Left out: filters that grow a text by a number (center, round, slice, ...), reach for attributes (attr), or concern
# HTML. Frugal ones of our own take the place of indent, join, replace and tojson.
_FILTERS = _words(
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse safe select selectattr sort string title trim unique upper"
)
# Filters and tests that look at no more than the outside of a value. All others are charged for reading it through.
_SHALLOW = _words(
    "count d default first items last length list map reject rejectattr reverse safe select selectattr "
    "boolean callable defined false float integer iterable mapping none number sameas sequence true undefined"
)
_WANTS_LIST = _words("list max min sort unique")


class _Namespace(Namespace):
    __repr__ = object.__repr__  # Jinja's prints the contents, which may be namespaces that contain this one


class _Generation(Extension):
    """{% generation %}, with which some templates mark what an assistant said; it prints what it encloses."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _CodeGenerator(CodeGenerator):
    """Jinja's compiler, with a charge at every place where a template can spend time or memory out of our sight:
    at the head of each block, hence in each round of a loop and each call of a macro, and around `~`, comparisons,
    slices, lists, tuples and dicts. (A tracer would see the rounds too, but takes the place of debuggers and coverage.)
    """

    environment: Sandbox

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.environment.spend(_STEP)  # compiling takes time, too
        return super().visit(node, *args, **kwargs)

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline(f"environment.spend({_STEP})")
        super().blockvisit(body, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(environment.finalize, (")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write(")))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._weighed(node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self.write(f" {compare_operators[node.op]} ")
        self._weighed(node.expr, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")  # the weight of its keys is more than its size
        for pair in node.items:
            self._weighed(pair.key, frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("}")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        display = node.ctx == "load"  # otherwise the target of an assignment
        self.write("environment.made(" if display else "")
        super().visit_Tuple(node, frame)
        self.write(")" if display else "")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        cut = isinstance(node.arg, nodes.Slice)
        self.write("environment.made(" if cut else "")
        super().visit_Getitem(node, frame)
        self.write(")" if cut else "")

    def _weighed(self, node: nodes.Node, frame: Frame) -> None:
        self.write("environment.weigh(")
        self.visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget, for one compilation or one rendering.

    spend  takes bytes from the budget and looks at the clock: before growth that can be foreseen, and at every step
    made   charges for a value that an operation has made; what it was made of bounds it
    weigh  charges for reading a value through: to print, compare or hash it. Needed because lists may share their
           parts: forty nested pairs of one list hold 2**40 leaves in 3 KB, and no tracer interrupts Python's own
           printing of them
    """

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, seconds: float, max_chars: int, max_bytes: int) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation], optimized=False
        )
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._chars = max_chars
        self._bytes = max_bytes
        self.finalize = self._shown
        ours: dict[str, Callable[..., Any]] = {
            "join": self._join,
            "replace": self._replace,
            "indent": self._indent,
            "tojson": self._tojson,
        }
        known: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _FILTERS} | ours
        self.filters = {name: self._guarded(name, function) for name, function in known.items()}
        self.tests = {name: self._guarded(name, function) for name, function in self.tests.items()}
        self.globals = {
            "range": self.globals["range"],  # at most 100,000 long
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": self._raise_exception,
            "strftime_now": self._strftime_now,
        }

    # The budget

    def spend(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise SecurityError("the template uses too much memory, or too many steps")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"the template runs for more than {self._seconds:g} seconds")

    def made(self, value: Any) -> Any:
        if isinstance(value, str):
            if len(value) > self._chars:
                raise SecurityError(f"the template makes a text of more than {self._chars:,} characters")
            self.spend(sys.getsizeof(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(sys.getsizeof(value))
        elif isinstance(value, int) and value.bit_length() > _INT_BITS:
            raise SecurityError("the template makes an enormous number")
        return value

    def weigh(self, value: Any) -> Any:
        path: list[Iterator[Any]] = [iter((value,))]
        while path:
            for item in path[-1]:
                self.spend(_STEP)
                if isinstance(item, str):
                    self.spend(len(item))
                elif isinstance(item, int) and item.bit_length() > _INT_BITS:
                    raise SecurityError("the template uses an enormous number")
                elif isinstance(item, _CONTAINERS):
                    if len(path) > _NESTING:
                        raise SecurityError("the template nests values too deeply")
                    path.append(itertools.chain(item, item.values()) if isinstance(item, dict) else iter(item))
                    break
            else:
                path.pop()
        return value

    def concat(self, parts: Iterable[str]) -> str:  # in Jinja, it is "".join
        pieces, size = [], 0
        for part in parts:
            size += len(part)
            if size > self._chars:
                raise SecurityError(f"the template makes a text of more than {self._chars:,} characters")
            pieces.append(part)
        return str(self.made("".join(pieces)))

    def _shown(self, value: Any) -> str:
        return value if isinstance(value, str) else str(self.made(str(self.weigh(value))))

    # What a template may reach

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for other in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise jinja2.TemplateSyntaxError("other templates cannot be loaded", other.lineno)
        for scope in tree.find_all((nodes.EvalContextModifier,)):  # {% autoescape %}
            raise jinja2.TemplateSyntaxError("a prompt is not HTML; there is no autoescape", scope.lineno)
        for loop in list(tree.find_all(nodes.For)):
            if loop.test is not None:  # it runs in a loop of its own, before the body: charge each round for it
                charge = nodes.Test(nodes.Const(True), "defined", [], [], None, None, lineno=loop.lineno)
                loop.test = nodes.And(charge, loop.test, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return isinstance(obj, _RUNTIME) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:
        """Without this, `format` would be let in before `is_safe_attribute` is asked."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.weigh(argument))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend(_STEP + 16 * (len(args) + len(kwargs)))
        if not isinstance(function, Macro):  # which reads nothing itself
            # Jinja passes the variables of the loop and the block along; they are not read either.
            self.weigh((args, {name: kwargs[name] for name in kwargs.keys() - {"_loop_vars", "_block_vars"}}))
        if isinstance(function, (BuiltinMethodType, MethodType)):
            owner, name = function.__self__, function.__name__
            if isinstance(owner, str):
                if name == "join":
                    function = functools.partial(self._join_method, owner)
                elif name == "replace":
                    function = functools.partial(self._replace_method, owner)
                elif name in ("split", "rsplit", "splitlines"):  # up to 90 bytes for each piece, at the worst
                    separator = args[0] if args and name != "splitlines" else None
                    self.spend(96 * (owner.count(separator) if isinstance(separator, str) else len(owner) // 2))
            elif isinstance(owner, (list, tuple)):
                self.weigh(owner)
        return self.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator != "+":  # which reads nothing through
            self.weigh((left, right))
        if operator == "%" and isinstance(left, str):
            raise SecurityError("the template formats a text with %")
        if operator == "**":  # where time is the matter, more than memory
            if isinstance(left, int) and isinstance(right, int) and right * left.bit_length() > _INT_BITS:
                raise SecurityError("the template makes an enormous number")
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
                    self._foresee((4 if isinstance(sequence, str) else 8) * len(sequence) * times)
        return self.made(super().call_binop(context, operator, left, right))

    def _guarded(self, name: str, function: Any) -> Callable[..., Any]:
        """A filter or test that pays for what it reads and makes."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment stands before the value

        @functools.wraps(function)  # also copies Jinja's marks
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.spend(_STEP)
            if name in _WANTS_LIST and isinstance(args[first], (str, range, Iterator)):
                args = (*args[:first], self._listed(args[first]), *args[first + 1 :])
            if name not in _SHALLOW:
                self.weigh((args[first:], kwargs))
            result = function(*args, **kwargs)
            return self._charged(result) if isinstance(result, GeneratorType) else self.made(result)

        return guarded

    def _charged(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(_STEP)
            yield item

    def _listed(self, items: Iterable[Any]) -> list[Any]:
        listed = []
        for item in items:
            self.spend(96)  # a slot, and perhaps a new character
            listed.append(item)
        return listed

    def _foresee(self, size: int) -> None:
        """Refuse a size before anything is allocated; what is made is charged for afterwards."""
        if size > self._bytes:
            self.spend(size)

    # What grows: foreseen, then made

    def _replace_method(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = text.count(old) if count < 0 else min(count, text.count(old))
        self._foresee(4 * found * len(new))  # an upper bound: a character has at most four bytes
        return text.replace(old, new, count)

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        return self._replace_method(str(text), str(old), str(new), -1 if count is None else count)

    def _join_method(self, separator: str, items: Iterable[str]) -> str:
        parts = self._listed(items)
        self._foresee(4 * (len(separator) * len(parts) + sum(map(len, parts))))
        return separator.join(parts)

    def _join(self, items: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        return self._join_method(self._shown(d), map(self._shown, items))

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        self._foresee(4 * (len(width) if isinstance(width, str) else width) * (text.count("\n") + 1))
        return do_indent(text, width, first, blank)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As in Hugging Face: not escaped for HTML, and in the file's own order."""
        if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 64:
            raise SecurityError("the template indents JSON too far")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.concat(encoder.iterencode(value))  # piece by piece, where dumps would make it all first

    @staticmethod
    def _raise_exception(message: Any) -> NoReturn:
        raise jinja2.TemplateError(str(message))

    @staticmethod
    def _strftime_now(form: str) -> str:
        if len(form) > 100:
            raise SecurityError("the template uses an enormous date format")
        return datetime.now().strftime(form)
