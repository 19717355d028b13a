"""One check for each kind of function in a dispatch table: random inputs, a call, and the results to compare.

A check is made once for each seed: `check(rng, entry)` yields runs. A run is a function of (table, memory) that calls
the entry of that table and returns what it computed, as arrays. `memory(array)` places a copy of an array between
guard pages, and returns a pointer and the copy.
"""

import numpy as np

from qwq_ref import core
from qwq_ref.core.ceilings import ORDERS
from qwq_ref.numerics import quant
from tests.support import core_calls
from tests.support.kernel_tables import ffi, layout_of

PANEL, LINE, LINES, GROUP, SPAN, BLOCK, STRIDE = 32, 64, 16, 64, 128, 32, 1056
EXTRA = 16  # floats behind a row's results of attention
TOKENS = (1, 2, 3, 4, 5, 6)


def numbers(rng, *shape):
    """Floats of several sizes, with zeros of both signs and subnormals."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
    odd = rng.random(shape)
    x[odd < 0.05] = 0.0
    x[(odd >= 0.05) & (odd < 0.08)] = -0.0
    x[(odd >= 0.08) & (odd < 0.1)] = 1e-41
    return x.astype(np.float32)


def every_size(check):
    """A check of sizes around those of registers."""

    def check_all(rng, entry):
        for size in (*core_calls.TAILS, 128, 200):
            yield from check(rng, size)

    return check_all


# --- matmul: quantising ------------------------------------------------------------------------------------------


def largest(rng, entry):
    groups = int(rng.integers(1, 6))
    x = numbers(rng, groups * GROUP)

    def run(table, memory):
        (to, found), (of, _) = memory(np.zeros(groups, np.float32)), memory(x)
        table.matmul.largest(to, of, groups)
        return [found]

    yield run


def quantise(rng, entry):
    x = rng.standard_normal(GROUP).astype(np.float32)
    inverse = 127 / np.abs(x).max()

    def run(table, memory):
        (to, found), (of, _) = memory(np.zeros(GROUP, np.int8)), memory(x)
        return [np.int32(table.matmul.quantise(to, of, inverse)), found]

    yield run


def quantise_weights(rng, entry):
    for w in (numbers(rng, GROUP), rng.standard_normal(GROUP).astype(np.float32), np.zeros(GROUP, np.float32)):

        def run(table, memory, w=w):
            (to, found), (of, _) = memory(np.zeros(GROUP, np.uint8)), memory(w)
            kind = "uint8_t *" if entry.field == "quantise_q4" else "int8_t *"
            return [np.uint16(getattr(table.matmul, entry.field)(ffi.cast(kind, to), of)), found]

        yield run


# --- matmul: weights and products --------------------------------------------------------------------------------


class Panel:
    """A packed panel of 32 rows of some format, and a tile of activations."""

    def __init__(self, rng, form):
        self.form, self.layout = core.Format(*form), layout_of(core.Format(*form))
        self.groups = 2 * int(self.layout.columns) // GROUP
        packed = core_calls.pack_call(rng, form, PANEL, self.groups * GROUP).results()["packed"]
        self.packed, self.tokens = packed, int(rng.choice(TOKENS))
        self.y = numbers(rng, self.tokens, PANEL)
        T, s = self.tokens, int(self.layout.subgroups)
        q = rng.integers(-127, 128, (self.groups, LINES, T, 4)).astype(np.int8)
        q[rng.random(q.shape) < 0.2] = 127
        step = rng.integers(0, 64, (self.groups, T))
        sums = q.reshape(self.groups, s, LINES // s, T, 4).astype(np.int32).sum((2, 4))
        ratio = quant.RATIOS[step]
        self.tile = {
            "q": q,
            "ratio": ratio,
            "scaled": (step * PANEL * 4).astype(np.uint16),
            "begin": (-int(self.layout.excess) * sums).astype(np.int32),
            "sum": (ratio[:, None] * sums).astype(np.float32),
            "x": rng.standard_normal((self.groups * GROUP, T)).astype(np.float32),
        }

    def c_format(self):
        return ffi.new("qwq_format *", core.formats.c_values(self.form))

    def c_tile(self, memory):
        held = ffi.new("qwq_tile *")
        for name, array in self.tile.items():
            setattr(held, name, memory(array)[0])
        return held

    def unpacked(self, table, memory):
        """All groups, as the rung's own functions unpack them."""
        wide, copy = memory(np.zeros(self.groups * ffi.sizeof("qwq_wide"), np.uint8))
        wide, at = ffi.cast("qwq_wide *", wide), memory(self.packed)[0]
        per_block = int(self.layout.columns) // GROUP
        for g in range(self.groups):
            block = at + g // per_block * int(self.layout.bytes)
            unpack = table.matmul.unpack[list(core.CODES).index(self.form.codes)]
            unpack(wide + g, block, g % per_block, self.c_format(), self.layout)
            if table.matmul.scale != ffi.NULL and self.layout.subgroups == 1:
                table.matmul.scale(wide + g, 2**64 - 1)
        return wide, copy


def formats(entry, floats):
    return [f for f in core_calls.FORMATS if bool(f[1]) != floats and entry.index in ("", f[0])]


def unpack(rng, entry):
    """Bytes, scales, offsets and zero points."""
    for form in formats(entry, floats=False):
        panel = Panel(rng, form)

        def run(table, memory, panel=panel):
            found = panel.unpacked(table, memory)[1].view(np.dtype((np.void, ffi.sizeof("qwq_wide"))))
            results = []
            s, layout = int(panel.layout.subgroups), panel.layout
            for wide in (np.frombuffer(each.tobytes(), np.uint8) for each in found):
                code, scale = wide[: LINES * 2 * LINE], wide[LINES * 2 * LINE :].view(np.float32)
                results += [code, scale[: s * PANEL]]
                if layout.offset:
                    results.append(scale[4 * PANEL : (4 + s) * PANEL])
                if layout.row_zeros:
                    results.append(scale[8 * PANEL : (8 + s) * PANEL])
            return results

        yield run


def widen(rng, entry):
    groups = int(rng.integers(1, 4))
    bits = rng.integers(0, 0x7C00, groups * GROUP * PANEL).astype(np.uint16)

    def run(table, memory):
        (to, found), (of, _) = memory(np.zeros(bits.size, np.float32)), memory(bits.view(np.uint8))
        entry.of(table)(to, of, groups)
        return [found]

    yield run


def scale(rng, entry):
    """The products that a rung keeps, against NumPy: scalar code keeps none."""
    scales, used = numbers(rng, PANEL), int(rng.integers(1, 2**63))

    def run(table, memory):
        chosen = [i for i in range(64) if used >> i & 1]
        if table.matmul.scale == ffi.NULL:
            return [quant.RATIOS[i] * scales for i in chosen]
        wide, _ = memory(np.zeros(ffi.sizeof("qwq_wide"), np.uint8))
        wide = ffi.cast("qwq_wide *", wide)
        ffi.memmove(wide.scale, scales.tobytes(), 4 * PANEL)
        table.matmul.scale(wide, used)
        return [np.frombuffer(ffi.buffer(wide.scaled[i])[:], np.float32) for i in chosen]

    yield run


def wide(rng, entry):
    """Products of a panel, unpacked by the same rung."""
    for form in formats(entry, floats=False):
        panel = Panel(rng, form)

        def run(table, memory, panel=panel):
            (y, found), (unpacked, _) = memory(panel.y), panel.unpacked(table, memory)
            table.matmul.wide(y, unpacked, panel.c_tile(memory), panel.tokens, panel.groups, panel.layout)
            return [found]

        yield run


def blocks(rng, entry):
    """Products straight from blocks; of integers, where a rung has no such way, by unpacking."""
    codes = list(core.CODES).index(entry.index)
    for form in formats(entry, floats=not core.CODES[entry.index].groups):
        panel = Panel(rng, form)

        def run(table, memory, panel=panel):
            (y, found), function, tile = memory(panel.y), table.matmul.blocks[codes], panel.c_tile(memory)
            if function != ffi.NULL:
                packed = memory(panel.packed)[0]
                function(y, packed, tile, panel.tokens, panel.groups, panel.c_format(), panel.layout)
            else:
                unpacked = panel.unpacked(table, memory)[0]
                table.matmul.wide(y, unpacked, tile, panel.tokens, panel.groups, panel.layout)
            return [found]

        yield run


# --- attention ---------------------------------------------------------------------------------------------------


@every_size
def quantise_kv(rng, E):
    x, gain, center = (numbers(rng, E) for _ in range(3))
    for moves in ((None, None), (gain, None), (None, center), (gain, center)):

        def run(table, memory, moves=moves):
            (to, found), (of, _) = memory(np.zeros(E, np.int8)), memory(x)
            by = [ffi.NULL if some is None else memory(some)[0] for some in moves]
            return [np.float32(table.attention.quantise(to, of, *by, E)), found]

        yield run


class Rows:
    """Some queries and one chunk of a cache."""

    def __init__(self, rng, fp32):
        self.fp32, self.E, self.rows = fp32, int(rng.choice([32, 64, 96, 128, 160])), int(rng.integers(1, 7))
        self.first, self.last = (0, 8) if rng.random() < 0.3 else (1, 3)
        E, R, tokens = self.E, self.rows, self.last * SPAN
        self.start = [int(rng.integers(self.first * SPAN, self.first * SPAN + 90)) for _ in range(R)]
        self.end = [int(rng.integers(self.last * SPAN - 30, self.last * SPAN + 1)) for _ in range(R)]
        self.p_bits = int(rng.choice([0, 8, 16]))
        if fp32:
            self.k, self.v = (rng.standard_normal((tokens, E)).astype(np.float32) for _ in range(2))
            self.q = rng.standard_normal((R, E)).astype(np.float32)
        else:
            self.k = rng.integers(1, 256, tokens * E).astype(np.uint8)
            self.v = rng.integers(-127, 128, tokens * E).astype(np.int8)
            self.q = rng.integers(-127, 128, (E // 4, R, 4)).astype(np.int8)
        halves = self.q.astype(np.int64).reshape(2, -1, R, 4) if not fp32 else np.zeros((2, 1, R, 4), np.int64)
        self.begin = -128 * halves.sum((1, 3))
        self.factor = (rng.random((2, R)) * (1e-4 if not fp32 else 0.2)).astype(np.float32)
        self.k_scale = [rng.random(tokens).astype(np.float32) + np.float32(0.1) for _ in range(2)]
        self.v_scale = rng.random(tokens).astype(np.float32) + np.float32(0.1)
        self.pairs = 0 if fp32 else int(rng.choice([0, 1, 2, 7]))
        self.bias = rng.integers(-9000, 9001, (tokens // 16, self.pairs, 16, 2)).astype(np.int16)
        self.bias_q = rng.integers(-9000, 9001, (self.pairs, R, 2)).astype(np.int16)
        self.bias_factor = (rng.random(R) * 1e-8).astype(np.float32)

    def placed(self, memory):
        """The structs of C, and the arrays that are written: scores, p, out."""
        chunk, rows = ffi.new("qwq_chunk *"), ffi.new("qwq_rows *")
        for i in range(self.first, self.last):
            own, span = slice(i * SPAN, (i + 1) * SPAN), chunk.spans[i]
            span.k, span.v = (memory(x.reshape(self.last * SPAN, -1)[own])[0] for x in (self.k, self.v))
            span.k_scale = [memory(scale[own])[0] for scale in self.k_scale]
            span.v_scale = memory(self.v_scale[own])[0]
        chunk.bias = memory(self.bias)[0]
        rows.rows, rows.E, rows.q = self.rows, self.E, memory(self.q)[0]
        rows.pairs, rows.bias_q = self.pairs, memory(self.bias_q)[0]
        for r in range(self.rows):
            for h in range(2):
                rows.begin[h][r], rows.factor[h][r] = int(self.begin[h, r]), self.factor[h, r]
            rows.bias_factor[r] = self.bias_factor[r]
            getattr(rows, "from")[r], rows.to[r] = self.start[r], self.end[r]
        rows.scores, scores = memory(np.zeros((self.rows, STRIDE), np.float32))
        rows.p, _ = memory(np.zeros((6, STRIDE), np.uint32))
        rows.out, out = memory(np.zeros((self.rows, self.E + EXTRA), np.float32))
        return rows, chunk, scores, out

    def seen(self, scores):
        return [scores[r, self.start[r] : self.end[r]] for r in range(self.rows)]


def scores(rng, entry):
    rows = Rows(rng, entry.field.endswith("fp32"))

    def run(table, memory):
        c_rows, chunk, found, _ = rows.placed(memory)
        entry.of(table)(c_rows, chunk, rows.first, rows.last)
        return rows.seen(found)

    yield run


def weights_and_values(rng, entry):
    """Scores of the same rung first; weights lie as the rung likes, so that only units and sums are compared."""
    fp32 = entry.field.endswith("fp32")
    rows, kind = Rows(rng, fp32), "fp32" if fp32 else "int8"

    def run(table, memory):
        c_rows, chunk, found, out = rows.placed(memory)
        attention = table.attention
        getattr(attention, f"scores_{kind}")(c_rows, chunk, rows.first, rows.last)
        getattr(attention, f"weights_{kind}")(c_rows, chunk, rows.first, rows.last, rows.p_bits)
        results = [out[:, rows.E : rows.E + 2].copy()]
        if fp32:
            results += rows.seen(found)
        else:
            units = np.frombuffer(ffi.buffer(c_rows.unit)[:], np.float32).reshape(6, -1)
            results += [units[r, rows.start[r] // BLOCK : -(-rows.end[r] // BLOCK)] for r in range(rows.rows)]
        if entry.field.startswith("values"):
            getattr(attention, f"values_{kind}")(c_rows, chunk, rows.first, rows.last)
            results.append(out[:, : rows.E])
        return results

    yield run


def merge(rng, entry):
    E = int(rng.choice([32, 64, 96, 128]))
    state, new = (rng.standard_normal(E + EXTRA).astype(np.float32) for _ in range(2))

    def run(table, memory):
        (to, found), (of, _) = memory(state), memory(new)
        table.attention.merge(to, of, E)
        return [found[: E + 2]]

    yield run


# --- the small operations ----------------------------------------------------------------------------------------


@every_size
def exp(rng, n):
    x = np.concatenate([numbers(rng, n), np.float32([-104, 89, -0.0, 88.5])])

    def run(table, memory):
        (to, found), (of, _) = memory(np.zeros_like(x)), memory(x)
        table.ops.exp(to, of, len(x))
        return [found]

    yield run


@every_size
def rmsnorm(rng, D):
    x, w = numbers(rng, D), numbers(rng, D)

    def run(table, memory):
        (to, found), (of, _), (by, _) = memory(np.zeros_like(x)), memory(x), memory(w)
        table.ops.rmsnorm(to, of, by, 1e-6, D)
        return [found]

    yield run


@every_size
def rope(rng, E):
    N, E = int(rng.integers(1, 4)), 2 * E
    x, cos, sin = numbers(rng, N * E), numbers(rng, E // 2), numbers(rng, E // 2)

    def run(table, memory):
        (to, found), (c, _), (s, _) = memory(x), memory(cos), memory(sin)
        table.ops.rope(to, c, s, N, E)
        return [found]

    yield run


@every_size
def softmax(rng, n):
    x = numbers(rng, n)

    def run(table, memory):
        (to, found), (of, _) = memory(np.zeros_like(x)), memory(x)
        table.ops.softmax(to, of, len(x))
        return [found]

    yield run


@every_size
def swiglu(rng, F):
    gate, up = numbers(rng, F), numbers(rng, F)

    def run(table, memory):
        (to, found), (g, _), (u, _) = memory(np.zeros_like(gate)), memory(gate), memory(up)
        table.ops.swiglu(to, g, u, 1.25, F)
        return [found]

    yield run


@every_size
def finish(rng, n):
    x, bias, residual = (numbers(rng, n) for _ in range(3))
    scale = rng.standard_normal(1).astype(np.float32)
    with_ = [rng.random() < 0.6 for _ in range(3)]

    def run(table, memory):
        y, found = memory(np.zeros(n, np.float32))
        given = [memory(a)[0] if has else ffi.NULL for a, has in zip((scale, bias, residual), with_, strict=True)]
        table.ops.finish(y, memory(x)[0], *given, n)
        return [found]

    yield run


@every_size
def next_above(rng, n):
    x = rng.standard_normal(n).astype(np.float32)
    x[rng.random(len(x)) < 0.02] = np.nan
    threshold, start = float(rng.uniform(0, 3)), int(rng.integers(0, len(x)))

    def run(table, memory):
        return [np.int64(table.ops.next_above(memory(x)[0], start, len(x), threshold))]

    yield run


# --- ceilings: nothing to compare --------------------------------------------------------------------------------


def read(rng, entry):
    data = rng.integers(0, 256, 64 * LINE).astype(np.uint8)
    for order in range(len(ORDERS)):

        def run(table, memory, order=order):
            table.ceilings.read(memory(data)[0], 64, order)
            return []

        yield run


def peak(rng, entry):
    def run(table, memory):
        if entry.of(table) != ffi.NULL:
            entry.of(table)(10)
        return []

    yield run


CHECKS = {
    ("matmul", "largest"): largest,
    ("matmul", "quantise"): quantise,
    ("matmul", "quantise_q4"): quantise_weights,
    ("matmul", "quantise_q8"): quantise_weights,
    ("matmul", "unpack"): unpack,
    ("matmul", "widen"): widen,
    ("matmul", "scale"): scale,
    ("matmul", "wide"): wide,
    ("matmul", "blocks"): blocks,
    ("attention", "quantise"): quantise_kv,
    ("attention", "scores_int8"): scores,
    ("attention", "scores_fp32"): scores,
    ("attention", "weights_int8"): weights_and_values,
    ("attention", "weights_fp32"): weights_and_values,
    ("attention", "values_int8"): weights_and_values,
    ("attention", "values_fp32"): weights_and_values,
    ("attention", "merge"): merge,
    ("ops", "exp"): exp,
    ("ops", "rmsnorm"): rmsnorm,
    ("ops", "rope"): rope,
    ("ops", "softmax"): softmax,
    ("ops", "swiglu"): swiglu,
    ("ops", "finish"): finish,
    ("ops", "next_above"): next_above,
    ("ceilings", "read"): read,
    ("ceilings", "peak"): peak,
}
