"""Templates that attack. Each is refused by a limit, a list, or Jinja."""

import threading

import pytest

from qwq_ref.errors import TemplateError
from qwq_ref.text import ChatTemplate
from tests.support.conversations import USER

GROW = "{% set ns = namespace(x=%s, y=%s) %}{% for i in range(60) %}{% set ns.x = %s %}{% set ns.y = %s %}{% endfor %}"


def grow(start, step, use=""):
    """A value made from itself sixty times, twice over, and then used."""
    steps = (step.replace("@", "ns.x"), step.replace("@", "ns.y"))
    source = GROW
    for part in (start, start, *steps):
        source = source.replace("%s", part, 1)
    return source + use


# Limits of the system. Where it depends on the machine which of the two is met first, either is right.
SLOW, BIG = "runs for more than 0.3 seconds", "needs more than 268,435,456 bytes of memory"
EITHER = f"{SLOW}|{BIG}"
# Our own limits, and what Jinja and Python refuse
LONG, DIGITS = "makes a text of more than 16,777,216 characters", "Exceeds the limit .* for integer string conversion"
UNSAFE, UNKNOWN = "is unsafe", "No filter named"
# name: (what the message must say, template)
HOSTILE = {
    "nested loops": (SLOW, "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"),
    "loop that filters": (SLOW, "{% for a in range(100000) if false %}{% endfor %}" * 1000),
    "loop over tests": (
        SLOW,
        "{% set m = 1 %}{% for a in [0] * 9999999 if "
        + " and ".join(["(" + "m and " * 60 + "m)"] * 60)
        + " and 0 %}{% endfor %}",
    ),
    "recursive loop": (SLOW, "{% for a in [3] * 99 recursive %}{{ loop([a - 1] * 99) if a }}{% endfor %}"),
    "two calls each": (
        SLOW,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ),
    "map of lists": (EITHER, "{% set x = ([range(100000)] * 100000) | map('list') | list %}"),
    "recursion": ("recurses too deeply", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "doubling by ~": (EITHER, grow("'a'", "@ ~ @")),
    "doubling by +": (EITHER, grow("'a'", "@ + @")),
    "doubling by *": (EITHER, grow("'a'", "@ * 2")),
    "doubling by join": (EITHER, grow("'a'", "[@, @] | join")),
    "doubling by join method": (EITHER, grow("'a'", "@.join([@, @])")),
    "doubling by replace": (EITHER, grow("'aa'", "@ | replace('a', 'aa')")),
    "doubling by replace method": (EITHER, grow("'aa'", "@.replace('a', 'aa')")),
    "doubling by a set block": (
        EITHER,
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = y %}{% endfor %}",
    ),
    "doubling by a macro": (
        EITHER,
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='a') %}"
        "{% for i in range(60) %}{% set ns.x = f(ns.x) %}{% endfor %}",
    ),
    "doubling a list": (EITHER, grow("[1]", "@ + @")),
    "doubling a number": (EITHER, grow("2", "@ * @")),
    "doubling a sum": (DIGITS, grow("2", "@ + @", "{{ ns.x }}").replace("range(60)", "range(20000)")),
    "repeat": (BIG, "{{ 'a' * 10 ** 12 }}"),
    "repeat from the left": (BIG, "{{ 10 ** 12 * 'a' }}"),
    "repeat a list": (BIG, "{{ [1] * 10 ** 12 }}"),
    "power": (EITHER, "{{ 9 ** (9 ** 9) }}"),
    "power of a power": (EITHER, grow("9", "@ ** 9")),
    "replace all by much": (BIG, "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}"),
    "replace nothing by much": (BIG, "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}"),
    "join by much": (BIG, "{{ ('b' * 1000000).join('a' * 1000000) }}"),
    "join much": (BIG, "{{ (['b' * 1000000] * 100000) | join }}"),
    "join as a filter": (BIG, "{{ ('a' * 1000000) | join('b' * 1000000) }}"),
    "indent": (BIG, "{{ 'a' | indent(10 ** 11, true) }}"),
    "indent lines": (BIG, "{{ ('a\n' * 1000000) | indent(100000) }}"),
    "indent JSON": (BIG, "{{ [1] | tojson(indent=10 ** 11) }}"),
    "separate JSON": (BIG, "{{ ([1] * 1000) | tojson(separators=('b' * 1000000, '')) }}"),
    "slices": (
        BIG,
        "{% set a = 'a' * 10000000 %}{% set ns = namespace(x=[]) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x + [a[1:]] %}{% endfor %}",
    ),
    "lists": (
        EITHER,
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [["
        + "i," * 20000
        + "]] %}{% endfor %}",
    ),
    "split": (BIG, "{% set x = ('aa ' * 5000000).split(' ') %}"),
    "split at space": (BIG, "{% set x = ('aa ' * 5000000).split() %}"),
    "split lines": (BIG, "{% set x = ('aa\n' * 5000000).splitlines() %}"),
    "list of characters": (EITHER, "{% set x = ('😀é' * 5000000) | list %}"),
    "sort characters": (EITHER, "{% set x = ('😀é' * 5000000) | sort %}"),
    "much output": (LONG, "{% set a = 'a' * 1000000 %}{% for i in range(100000) %}{{ a }}{% endfor %}"),
    "much output of its own": (LONG, "{% for i in range(100000) %}" + "x" * 10000 + "{% endfor %}"),
    "output in a block": (
        BIG,
        "{% set a = 'a' * 100000000 %}{% macro f() %}{{ a }}{{ a }}{% endmacro %}{{ f() | length }}",
    ),
    # Shared parts: small in memory, endless to read through
    "print": (EITHER, grow("[1]", "[@, @]", "{{ ns.x }}")),
    "print by ~": (EITHER, grow("[1]", "[@, @]", "{{ ns.x ~ '' }}")),
    "print as string": (EITHER, grow("[1]", "[@, @]", "{{ ns.x | string }}")),
    "print JSON": (EITHER, grow("[1]", "[@, @]", "{{ ns.x | tojson }}")),
    "print upper": (EITHER, grow("[1]", "[@, @]", "{{ ns.x | upper }}")),
    "print joined": (EITHER, grow("[1]", "[@, @]", "{{ [ns.x] | map('default') | join }}")),
    "print a view": (EITHER, grow("{'a': 1}", "{'a': @, 'b': @}", "{{ ns.x.items() }}")),
    "print arguments": (
        EITHER,
        "{% set ns = namespace(x=[1]) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    ),
    "raise": (EITHER, grow("[1]", "[@, @]", "{{ raise_exception(ns.x) }}")),
    "compare": (EITHER, grow("[1]", "[@, @]", "{{ ns.x == ns.y }}")),
    "compare in a chain": (EITHER, grow("[1]", "[@, @]", "{{ [] != ns.x == ns.y }}")),
    "hash to look for": (EITHER, grow("(1,)", "(@, @)", "{{ ns.x in {} }}")),
    "compare in a test": (EITHER, grow("[1]", "[@, @]", "{{ ns.x is eq(ns.y) }}")),
    "look for": (EITHER, grow("[1]", "[@, @]", "{{ ns.x in [ns.y] }}")),
    "index": (EITHER, grow("[1]", "[@, @]", "{{ [ns.x].index(ns.y) }}")),
    "sort": (EITHER, grow("[1]", "[@, @]", "{{ [ns.x, ns.y] | sort | length }}")),
    "changed": (
        EITHER,
        grow("[1]", "[@, @]", "{% for a in [ns.x, ns.y] %}{{ loop.changed(a) }}{% endfor %}"),
    ),
    "hash a key": (EITHER, grow("(1,)", "(@, @)", "{{ {ns.x: 1} | length }}")),
    "hash an index": (EITHER, grow("(1,)", "(@, @)", "{{ {}[ns.x] }}")),
    "hash for get": (EITHER, grow("(1,)", "(@, @)", "{{ {}.get(ns.x) }}")),
    "hash in a test": (EITHER, grow("(1,)", "(@, @)", "{{ ns.x is filter }}")),
    "unique": (EITHER, grow("(1,)", "(@, @)", "{{ [ns.x] | unique | list | length }}")),
    "deep": (  # Python hashes nested tuples by recursion in C, and never looks at the depth of the stack
        "crashes .signal 11",
        "{% set ns = namespace(x=(1,)) %}{% for i in range(4) %}{% for j in range(100000) %}{% set ns.x = (ns.x,) %}"
        "{% endfor %}{% endfor %}{{ {}[ns.x] }}",
    ),
    # Formats and what else grows by a number
    "format with %": (BIG, "{{ '%999999999d' % 1 }}"),
    "format filter": (UNKNOWN, "{{ '%999999999d' | format(1) }}"),
    "format method": (UNSAFE, "{{ '{:>999999999}'.format('') }}"),
    "format method by index": (UNSAFE, "{{ ''['format']('') }}"),
    "format method by map": (
        UNSAFE,
        "{% for f in ['{0.__class__}'] | map(attribute='format') %}{{ f(1) }}{% endfor %}",
    ),
    "format_map": (UNSAFE, "{{ '{a}'.format_map({'a': 1}) }}"),
    "center": (UNKNOWN, "{{ 'a' | center(999999999) }}"),
    "center method": (UNSAFE, "{{ 'a'.center(999999999) }}"),
    "ljust": (UNSAFE, "{{ 'a'.ljust(999999999) }}"),
    "zfill": (UNSAFE, "{{ 'a'.zfill(999999999) }}"),
    "expandtabs": (UNSAFE, "{{ '\t'.expandtabs(999999999) }}"),
    "translate": (UNSAFE, "{{ 'a'.translate({97: 'aa'}) }}"),
    "to_bytes": (UNSAFE, "{{ (1).to_bytes(999999999, 'big') }}"),
    "round": (UNKNOWN, "{{ 1 | round(999999999) }}"),
    "slice": (UNKNOWN, "{{ [1] | slice(999999999) | list }}"),
    "batch": (UNKNOWN, "{{ [1] | batch(999999999, 1) | list }}"),
    "wordwrap": (UNKNOWN, "{{ 'a a' | wordwrap(1, true, 'b' * 1000000) }}"),
    "hexadecimal": (DIGITS, "{{ ('f' * 100000) | int(0, 16) }}"),
    "decimal": ("Exceeds the limit", "{{ " + "9" * 10000 + " }}"),
    "long range": ("Range too big", "{{ range(999999999) | list }}"),
    "date": ("date format", "{{ strftime_now('%c' * 100) }}"),
    "lorem ipsum": ("'lipsum' is undefined", "{{ lipsum(999999) }}"),
    # Ways out
    "class": (UNSAFE, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "class by index": (UNSAFE, "{{ ''['__class__']['__mro__'] }}"),
    "class by attr": (UNKNOWN, "{{ '' | attr('__class__') }}"),
    "class by map": (UNSAFE, "{{ [''] | map(attribute='__class__.__mro__') | list }}"),
    "class by key": (UNSAFE, "{{ messages | selectattr('__class__.__mro__') | list }}"),
    "globals of a function": (UNSAFE, "{{ raise_exception.__globals__.os }}"),
    "globals of a macro": (UNSAFE, "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}"),
    "globals of self": (UNSAFE, "{{ self._TemplateReference__context.environment }}"),
    "globals of loop": (UNSAFE, "{% for a in [1] %}{{ loop._iterator.x }}{% endfor %}"),
    "globals of cycler": (UNSAFE, "{{ cycler.__init__.__globals__ }}"),
    "globals of namespace": ("no attribute|'__init__'", "{{ namespace().__init__.__globals__.os }}"),
    "mutation": (UNSAFE, "{{ messages.append(1) }}"),
    "mutation of a dict": (UNSAFE, "{{ messages[0].update({'role': 'system'}) }}"),
    "dict.fromkeys": (UNSAFE, "{{ dict.fromkeys(range(9)) }}"),
    "include": ("other templates", "{% include '/etc/passwd' %}"),
    "import": ("other templates", "{% import 'os' as os %}"),
    "from import": ("other templates", "{% from 'os' import system %}"),
    "extends": ("other templates", "{% extends messages[0].content %}"),
    "autoescape": ("not HTML", "{% autoescape true %}{{ '<' * 9 }}{% endautoescape %}"),
    # Mistakes
    "raise_exception": ("^file: line 2: no, two\\\\nlines$", "\n{{ raise_exception('no, two\nlines') }}"),
    "syntax": ("^file: line 3: ", "a\nb\n{% if %}"),
    "unknown tag": ("^file: line 1: Encountered unknown tag", "{% exec %}"),
    "undefined": ("^file: line 2: 'nothing' is undefined$", "\n{{ nothing.more }}"),
    "wrong type": ("^file: line 1: TypeError: ", "{{ 1 + 'a' }}"),
    "division": ("^file: line 1: ZeroDivisionError", "{{ 1 // 0 }}"),
    "not JSON": ("is not JSON serializable", "{{ range | tojson }}"),
    "parentheses": ("recurses too deeply", "{{ " + "(" * 5000 + ")" * 5000 + " }}"),
    "nested ifs": ("recurses too deeply", "{% if a %}" * 2000 + "{% endif %}" * 2000),
    "nested fors": ("too many statically nested blocks", "{% for a in b %}" * 30 + "{% endfor %}" * 30),
    "many filters": ("recurses too deeply", "{{ ''" + "|upper" * 9000 + " }}"),
    "many sums": ("recurses too deeply", "{{ 1" + "+a" * 30000 + " }}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template(name):
    wanted, source = HOSTILE[name]
    seconds = 0.3 if SLOW in wanted else 60  # where another limit is meant, a busy machine must not let this one win
    with pytest.raises(TemplateError, match=wanted) as caught:
        ChatTemplate(source, "file", seconds=seconds).render([USER])
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("file: ")


def test_each_limit_stands_alone():
    """Where the others are out of reach."""
    far = {"seconds": 1000, "max_chars": 1 << 60, "max_bytes": 1 << 60}
    loops = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"
    assert ChatTemplate(loops, **far).render([USER]) == ""
    with pytest.raises(TemplateError, match=r"more than 0\.05 seconds"):
        ChatTemplate(loops * 10, **{**far, "seconds": 0.05}).render([USER])
    large = "{% set a = 'a' * 50000000 %}"
    assert ChatTemplate(large, **far).render([USER]) == ""
    with pytest.raises(TemplateError, match="more than 33,554,432 bytes of memory"):
        ChatTemplate(large, **{**far, "max_bytes": 1 << 25}).render([USER])
    text = "{% for a in range(1001) %}x{% endfor %}"
    assert len(ChatTemplate(text, **far).render([USER])) == 1001
    with pytest.raises(TemplateError, match="more than 1,000 characters"):
        ChatTemplate(text, **{**far, "max_chars": 1000}).render([USER])


@pytest.mark.parametrize(("start", "item", "end"), [("[", "i,", "]"), ("(", "i,", ")"), ("{", "'%d': i,", "}")])
def test_displays_use_memory(start, item, end):
    """What a template keeps counts, and what it lets go does not."""
    items = "".join(item % number if "%" in item else item for number in range(1000))
    source = "{% for i in range(1000) %}{% set x = " + start + items + end + " %}{% endfor %}"
    assert ChatTemplate(source, seconds=1000, max_bytes=1 << 22).render([USER]) == ""
    source = source.replace("set x = ", "set ns.x = [ns.x, ").replace(" %}{% endfor %}", "] %}{% endfor %}")
    with pytest.raises(TemplateError, match="bytes of memory"):
        ChatTemplate("{% set ns = namespace(x=0) %}" + source, seconds=1000, max_bytes=1 << 22).render([USER])


def test_a_budget_is_for_one_rendering():
    """And holds in any thread."""
    template = ChatTemplate("{% for a in range(100000) %}{% endfor %}done", max_bytes=8_000_000)
    done = []
    threads = [threading.Thread(target=lambda: done.append(template.render([USER]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["done"] * 4
