"""Mutants of files, the same for the same seed: changed bytes, changed JSON, changed encodings, changed headers."""

import copy
import json
import random

from tests.support.gguf_files import places

DIGITS = b'0123456789"{}[],:-.eE\\ \n'
PIECES = [b"null", b"true", b"-1", b"1e999", b"NaN", b"-Infinity", b'""', b"{}", b"[]", b"\0", b"\xff", b"\xef\xbb\xbf"]
SCALARS = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 16, 31, 0.5, 1.0, 2.0, 1e-6, 1e-300, 1e30, 1e308, -0.0),
    *(1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 1 << 70, 10**400, -(1 << 63)),
    *("", "a", "1", "1e-6", "true", "../x", "/etc/passwd", "a/b", "\0", "\ud800", "é", "\n", "x" * 2000, "{{", "%s"),
    *([], [0], [1, 2], [[]], {}, {"a": 1}, ["full_attention"], "yarn", "default", "F16", "F64", "I64", "U8", "default"),
]
TEMPLATE = [
    *("{%", "%}", "{{", "}}", "{#", "#}", "-%}", "{%- ", " | tojson", " | safe", " ~ ", "[", "]", "(", ")", "'", '"'),
    *("{% for x in range(9) %}", "{% endfor %}", "{% if true %}", "{% endif %}", "{% set x = 1 %}", "{% raw %}"),
    *(
        "{{ messages }}",
        "{{ x.__class__ }}",
        "{{ raise_exception('no') }}",
        "{% break %}",
        "{{ 1 / 0 }}",
        "{{ 9 ** 99 }}",
    ),
    *("message", "content", "role", "messages", "loop.index0", "namespace()", "\n", "\t", "é", "\0", "<|im_end|>"),
]


def rng_of(seed, kind, number):
    """Return the generator of one mutant. Python's own hash of text differs between runs; this does not."""
    return random.Random(f"{seed}:{kind}:{number}")


def of_json(data, rng):
    """Return mutated JSON: mostly changed values, and sometimes a changed text."""
    if rng.random() < 0.15:
        return of_bytes(data, rng)
    values = json.loads(data)
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3])):
        values = changed(values, rng) if isinstance(values, dict) else values
    if rng.random() < 0.3 and isinstance(values, dict):
        values = dict(rng.sample(list(values.items()), len(values))) | {rng.choice(["x", "é", "note"]): "unknown"}
    text = json.dumps(values, ensure_ascii=rng.random() < 0.8, indent=rng.choice([None, None, 2]))
    if rng.random() < 0.1 and isinstance(values, dict) and values:
        key, value = rng.choice(list(values.items()))
        text = f"{{{json.dumps(key)}: {json.dumps(rng.choice([value, 1]))}, {text.removeprefix('{')}"
    made = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        made = recoded(made, rng)
    return of_bytes(made, rng) if rng.random() < 0.1 else made


def changed(values, rng):
    """Change one place in nested dicts and lists: a value, a name, or whether it is there."""
    places = [([], values)]
    for path, inner in places:
        if len(places) < 20_000 and isinstance(inner, dict | list):
            keys = inner if isinstance(inner, dict) else range(len(inner))
            places += [([*path, key], inner[key]) for key in keys]
    path, old = rng.choice(places)
    if rng.random() < 0.5:  # deep places are many; the fields at the top are those that matter
        path, old = rng.choice([place for place in places if len(place[0]) <= 2])
    if not path:
        return rng.choice([values, [values], [], 0, None])
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    last, way = path[-1], rng.randrange(10)
    if way < 3:
        parent[last] = copy.deepcopy(rng.choice(SCALARS))
    elif way < 6:
        parent[last] = near(old, rng)
    elif way == 6:
        del parent[last]
    elif way == 7 and isinstance(parent, dict):
        parent[near(last, rng)] = parent.pop(last)
    elif way == 8:
        parent[last] = [old] if rng.random() < 0.5 else {"x": old}
    else:
        parent[last] = copy.deepcopy(rng.choice(places)[1])
    return values


def near(value, rng):
    """Return a value like the one given: a number a little off, or in another type; a text with one other letter."""
    if isinstance(value, bool) or value is None:
        return rng.choice([int(bool(value)), str(value), not value])
    if isinstance(value, int | float) and abs(value) < 1 << 64:
        return rng.choice([value + 1, value - 1, value * 2, -value, float(value), str(value), value // 2, [value]])
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return rng.choice(
            [value[:place] + value[place + 1 :], value[:place] + "a" + value[place:], value.upper(), value + " "]
        )
    return rng.choice([list(value)[:-1] if isinstance(value, list) else 0, {}, [], None])


def of_bytes(data, rng):
    """Return mutated bytes: edits, and sometimes a cut, a hole, a repetition, or a piece from elsewhere."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 8, 100])
        way = rng.randrange(8)
        if way < 3 and place < len(data):
            data[place] = rng.choice([rng.randrange(256), rng.choice(DIGITS), data[place] ^ (1 << rng.randrange(8))])
        elif way == 3:
            del data[place : place + length]
        elif way == 4:
            data[place:place] = rng.choice(PIECES)
        elif way == 5:
            data[place:place] = data[place : place + length]
        elif way == 6:
            other = rng.randrange(len(data) + 1)
            data[place : place + length] = data[other : other + length]
        elif rng.random() < 0.3:
            del data[place:]
        else:
            data += rng.randbytes(length)
    return bytes(data)


def recoded(data, rng):
    """Return a JSON text in another encoding, or with other line ends, as editors save it."""
    text = data.decode("utf-8", "surrogatepass")
    return rng.choice(
        [
            b"\xef\xbb\xbf" + data,
            data.replace(b", ", b",\r\n"),
            text.encode("utf-16", "surrogatepass"),
            text.encode("latin-1", "replace"),
            data + b"\n\0",
            data + b"\n" * 10,
            b" " * 70 + data,
        ]
    )


def of_safetensors(data, rng):
    """Return a mutated safetensors file: its header as JSON, the length of the header, or its bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = data[8:end], data[end:]
    way = rng.random()
    if way < 0.6:
        header = of_header(header, rng)
        return len(header).to_bytes(8, "little") + header + body
    if way < 0.7:
        length = rng.choice([0, 1, len(header) - 1, len(header) + 1, len(data), 1 << 20, 1 << 40, (1 << 64) - 1])
        return length.to_bytes(8, "little") + header + body
    if way < 0.8:
        header = of_bytes(header, rng)
        return len(header).to_bytes(8, "little") + header + body
    if way < 0.9:
        return data[:8] + header + of_bytes(body, rng)
    return of_bytes(data, rng)


def of_header(header, rng):
    """Return a mutated header. A field `packed` in its metadata is JSON in a string, and is mutated inside."""
    values = json.loads(header)
    inner = values.get("__metadata__", {}).get("packed")
    if inner is None or rng.random() < 0.5:
        return of_json(header, rng)
    values["__metadata__"]["packed"] = of_json(inner.encode(), rng).decode("utf-8", "replace")
    text = json.dumps(values).encode()
    return text + b" " * (-(len(text) + 8) % 64)


def of_template(data, rng):
    """Return a mutated template: pieces of the language put in, or a piece removed, repeated or moved."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    text = data.decode()
    for _ in range(rng.choice([1, 1, 2, 3])):
        marks = [place for place in range(len(text)) if text[place] in "{}% "]
        place = rng.choice(marks) if marks else 0
        end = min(len(text), place + rng.choice([1, 2, 5, 30]))
        other = rng.choice(marks) if marks else 0
        text = rng.choice(
            [
                text[:place] + rng.choice(TEMPLATE) + text[place:],
                text[:place] + text[end:],
                text[:end] + text[place:],
                text[:place] + text[other : other + 30] + text[place:],
            ]
        )
    return text.encode()


def of_gguf(data, rng):
    """Return a mutated GGUF file: a number of its header, an entry, or its bytes."""
    numbers, entries = places(data)
    way, made = rng.random(), bytearray(data)
    if way < 0.6:
        for _ in range(rng.choice([1, 1, 1, 2])):
            at, size = rng.choice(numbers)
            old = int.from_bytes(made[at : at + size], "little")
            flipped, elsewhere = old ^ (1 << rng.randrange(8 * size)), rng.choice(numbers)[0]
            near = [old + 1, old - 1, old * 2, old // 2, flipped, (1 << 63) + old, elsewhere, len(data), len(data) - at]
            new = rng.choice([*near, 0, 1, 255, 1 << 31, 1 << 32, (1 << 64) - 1, rng.randrange(44)])
            made[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
        return bytes(made)
    if way < 0.75:
        begin, end = rng.choice(entries)
        other, last = rng.choice(entries)
        entry = data[other:last]
        return data[:begin] + rng.choice([b"", entry, entry + data[begin:end]]) + data[end:]
    header = entries[-1][1]
    if way < 0.85:
        return of_bytes(data[:header], rng) + data[header:]
    if way < 0.95:
        return data[:header] + of_bytes(data[header:], rng)
    return of_bytes(data, rng)
