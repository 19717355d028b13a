"""Every entry point of the C core as data: what safety tests place, disturb and compare.

A call is a function's name and its arguments in order: numbers, pointers to arrays, and pointers to structs of these.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwq_ref import core
from qwq_ref.core import attention as core_attention
from qwq_ref.core.formats import c_format as c_format_of
from tests.support.key_biases import drawn, only_center

TAILS = (1, 15, 17, 31, 33, 63, 65)
AFFINE = [codes for codes, of in core.CODES.items() if "zero" in of.scales]  # u4, u5, u6, u8
FORMATS = [
    ("q4", 64, "plain", 0),
    *(("q8", group, scales, 0) for group in (16, 32, 64, 128) for scales in ("plain", "super")),
    *((codes, group, "plain", 8) for codes in AFFINE for group in (16, 32, 64, 128)),
    *(
        (codes, group, scales, 0)
        for codes in AFFINE
        for group in (16, 128)
        for scales in ("zero", "offset", "offset_bf16")
    ),
    *((codes, group, "super", 32) for codes in AFFINE for group in (16, 32)),
    *((codes, group, "super_min", 0) for codes in AFFINE for group in (32, 64)),
    *((codes, 0, "plain", 0) for codes, of in core.CODES.items() if not of.groups),
]  # codes, group, scales, zero_point
LAYOUTS = ("rows", "columns", "eights")
EXEMPT = {"qwq_cpu_features", "qwq_isa_needs", "qwq_isa_supported", "qwq_isas_ran", "qwq_uniform"}  # take no arrays
EXEMPT |= {"qwq_isa_name", "qwq_feature_name", "qwq_code_name", "qwq_scales_name", "qwq_isa_table"}
EXEMPT |= {"qwq_format_layout", "qwq_block_name", "qwq_block_of"}
EXEMPT |= {"qwq_peak", "qwq_peak_products", "qwq_peak_instructions"}
EXEMPT |= {"qwq_packed_bytes", "qwq_matmul_scratch", "qwq_attention_scratch"}  # sizes, asked for in every call below
EXEMPT |= {"qwq_kv_page_bytes", "qwq_layer_scratch"}


@dataclass
class Array:
    """What a pointer points to. role: "in", "out", "inout", or "scratch", which nobody compares."""

    data: np.ndarray
    role: str = "in"
    align: int = 0  # 0: the element's size
    needed: bool = True  # NULL is refused

    def __post_init__(self):
        self.data = np.ascontiguousarray(self.data)
        self.align = self.align or self.data.itemsize


@dataclass
class Table:
    """A pointer to pointers, each to an Array."""

    arrays: list  # of Array, or None

    def named(self, name):
        return {f"{name}[{i}]": array for i, array in enumerate(self.arrays) if array is not None}

    def placed(self, name, addresses):
        places = [addresses[f"{name}[{i}]"] if array is not None else 0 for i, array in enumerate(self.arrays)]
        return core.ffi.new("uint8_t *[]", [core.ffi.cast("uint8_t *", place) for place in places])


@dataclass
class Struct:
    """A pointer to a struct, whose pointers are Arrays, Structs or None. Structs inside it are Structs, too."""

    kind: str
    fields: dict[str, Any]
    needed: bool = True
    held: Any = None  # what one of its pointers points to

    def arrays(self, name):
        found = {}
        for key, value in self.fields.items():
            if isinstance(value, Array):
                found[f"{name}.{key}"] = value
            elif isinstance(value, Table):
                found |= value.named(f"{name}.{key}")
            elif isinstance(value, Struct):
                found |= value.arrays(f"{name}.{key}")
        return found

    def changed(self, path, value):
        """With another field, or a field of a field."""
        key, _, rest = path.partition(".")
        if key.endswith("]"):  # of a Table
            key, index = key[:-1].split("[")
            arrays = list(self.fields[key].arrays)
            arrays[int(index)] = value
            value = Table(arrays)
        return Struct(
            self.kind, self.fields | {key: self.fields[key].changed(rest, value) if rest else value}, self.needed
        )

    def fill(self, struct, name, addresses):
        """A C struct, its pointers from addresses."""
        types = dict(core.ffi.typeof(self.kind).fields)
        for key, value in self.fields.items():
            if isinstance(value, Struct) and types[key].type.kind == "pointer":
                self.held = core.ffi.new(f"{value.kind} *")
                value.fill(self.held, f"{name}.{key}", addresses)
                setattr(struct, key, self.held)
            elif isinstance(value, Struct):
                value.fill(getattr(struct, key), f"{name}.{key}", addresses)
            elif isinstance(value, Table):
                self.held = value.placed(f"{name}.{key}", addresses)
                setattr(struct, key, self.held)
            elif types[key].type.kind == "pointer":
                address = addresses[f"{name}.{key}"] if isinstance(value, Array) else 0
                setattr(struct, key, core.ffi.cast(types[key].type, address))
            else:
                setattr(struct, key, value)


@dataclass
class Call:
    function: str
    arguments: dict[str, Any]  # numbers, Arrays, Structs, or None
    aliases: frozenset = field(default_factory=frozenset)  # (output, input) that may be the same

    def __str__(self):
        """Without what is in arrays."""

        def shown(value):
            if isinstance(value, Array):
                return list(value.data.shape)
            if isinstance(value, Struct):
                return {key: shown(inner) for key, inner in value.fields.items()}
            return value

        return f"{self.function} { {name: shown(value) for name, value in self.arguments.items()} }"

    def arrays(self):
        """name -> Array, also of those in structs: "fusion.bias"."""
        found = {}
        for name, value in self.arguments.items():
            if isinstance(value, Array):
                found[name] = value
            elif isinstance(value, Struct):
                found |= value.arrays(name)
        return found

    def run(self, addresses):
        """The returned code, with the arrays at these addresses."""
        ffi, held, given = core.ffi, [], []
        types = ffi.typeof(getattr(core.lib, self.function)).args

        def pointer(name, value, c_type):
            return ffi.cast(c_type, addresses[name] if isinstance(value, Array) else 0)

        for (name, value), c_type in zip(self.arguments.items(), types, strict=True):
            if isinstance(value, Struct):
                struct = ffi.new(f"{value.kind} *")
                value.fill(struct, name, addresses)
                held.append(struct)
                given.append(struct)
            elif c_type.kind == "pointer":
                given.append(pointer(name, value, c_type))
            else:
                given.append(value)
        return getattr(core.lib, self.function)(*given)

    def results(self):
        """What it writes in ordinary memory: name -> array."""
        copies = {name: aligned_copy(a.data) for name, a in self.arrays().items()}
        code = self.run({name: copy.ctypes.data for name, copy in copies.items()})
        assert code == 0, (self.function, code)
        return {name: copies[name] for name, a in self.arrays().items() if a.role in ("out", "inout")}


def aligned_copy(array):
    copy = core.aligned(max(array.nbytes, 1))[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def out(*shape, dtype=np.float32, align=0):
    return Array(
        np.full(np.prod(shape) * np.dtype(dtype).itemsize, 0xA5, np.uint8).view(dtype).reshape(shape), "out", align
    )


def scratch(size, align):
    assert size > 0
    return Array(np.full(size, 0xFF, np.uint8), "scratch", align)


def c_format(form):
    return c_format_of(core.Format(*form))


def format_struct(form):
    c = c_format(form)
    return Struct("qwq_format", {key: getattr(c, key) for key in ("codes", "group", "scales", "zero_point")})


def small(rng, tail):
    T, D = int(rng.integers(1, 8)), tail
    x = rng.standard_normal
    yield Call("qwq_exp", {"y": out(D), "x": floats(x(D)), "n": D, "isa": 0})
    how = {"isa": 0, "threads": 1}
    sizes = {"T": T, "D": D}
    yield Call("qwq_rmsnorm", {"y": out(T, D), "x": floats(x((T, D))), "w": floats(x(D)), "eps": 1e-5, **sizes, **how})
    yield Call(
        "qwq_softmax",
        {"y": out(T, D), "x": floats(x((T, D))), "T": T, "n": D, **how},
        frozenset({("y", "x")}),
    )
    ld = D + int(rng.integers(0, 3))
    rows = {"gate": floats(x((T - 1) * ld + D)), "up": floats(x((T - 1) * ld + D))}
    yield Call("qwq_swiglu", {"y": out(T, D), **rows, "beta": 1.0, "T": T, "F": D, "ld": ld, **how})
    yield Call("qwq_argmax", {"index": out(1, dtype=np.int32), "x": floats(x(D)), "n": D, "isa": 0})
    k = int(rng.integers(1, D + 1))
    both = {"index": out(k, dtype=np.int32), "value": out(k)}
    yield Call("qwq_top_k", {**both, "x": floats(x(D)), "n": D, "k": k, "isa": 0})
    E, N = 2 * D, int(rng.integers(1, 4))
    ld = N * E + int(rng.integers(0, 3))
    turned = Array(x((T - 1) * ld + N * E).astype(np.float32), "inout")
    tables = {"cos": floats(x((T, D))), "sin": floats(x((T, D)))}
    yield Call("qwq_rope", {"x": turned, **tables, "T": T, "N": N, "E": E, "ld": ld, **how})
    numbers = {"theta": 1e6, "yarn": 1, "factor": 4.0, "original": 32768.0, "beta_fast": 32.0, "beta_slow": 1.0}
    yield Call("qwq_rope_frequencies", {"inv_freq": out(D), **numbers, "truncate": 1, "E": E})
    given = {"inv_freq": floats(rng.random(D)), "scaling": 1.0}
    positions = Array(rng.integers(0, 1 << 20, T).astype(np.int32))
    yield Call("qwq_rope_tables", {"cos": out(T, D), "sin": out(T, D), **given, "positions": positions, "T": T, "E": E})


def quantising(rng):
    T, K = int(rng.integers(1, 8)), 64 * int(rng.integers(1, 5))
    w = rng.standard_normal((T, K))
    outputs = {"q": out(T, K, dtype=np.int8), "step": out(T, K // 64, dtype=np.uint8), "scale": out(T)}
    yield Call("qwq_quantise_activations", {**outputs, "x": floats(w), "T": T, "K": K, "isa": 0})
    bits = {core.lib.QWQ_FP32: floats(w), core.lib.QWQ_FP16: Array(w.astype(np.float16))}
    bits[core.lib.QWQ_BF16] = Array((w.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    for name, dtype in (("q4", np.uint8), ("q8", np.int8)):
        for number, source in bits.items():
            outputs = {"code": out(T, K, dtype=dtype), "scale": out(T, K // 64, dtype=np.uint16)}
            numbers = {"N": T, "K": K, "dtype": number, "isa": 0, "threads": 1}
            yield Call(f"qwq_quantise_{name}", {**outputs, "w": source, **numbers})


def pack_call(rng, form, N, K):
    codes, group, scales, _ = form
    fields = dict.fromkeys(("code", "scale", "zero_point", "offset", "sub_scale", "sub_min", "words"))
    if group:
        code = rng.integers(0, 2 ** core.CODES[codes].bits, (N, K)).astype(np.uint8)
        fields["code"] = Array(code)
        m, d = -(-K // group), -(-K // (256 if scales.startswith("super") else group))
        fields["scale"] = Array(rng.standard_normal((N, d)).astype(np.float16).view(np.uint16))
        if scales == "zero":
            fields["zero_point"] = Array(rng.integers(0, 256 if codes == "u8" else 17, (N, m)).astype(np.uint8))
        if scales in ("offset", "offset_bf16", "super_min"):
            fields["offset"] = Array(rng.standard_normal((N, d)).astype(np.float16).view(np.uint16))
        if scales.startswith("super"):
            fields["sub_scale"] = Array(rng.integers(0, 64, (N, m)).astype(np.uint8))
        if scales == "super_min":
            fields["sub_min"] = Array(rng.integers(0, 64, (N, m)).astype(np.uint8))
    else:
        w = rng.standard_normal((N, K)).astype(np.float32)
        half = w.astype(np.float16).view(np.uint16)
        fields["code"] = Array({"fp32": w, "fp16": half}.get(codes, (w.view(np.uint32) >> 16).astype(np.uint16)))
    size = core.lib.qwq_packed_bytes(c_format(form), N, K)
    packed = out(size, dtype=np.uint8, align=64)
    weight = Struct("qwq_weight", fields)
    arguments = {"packed": packed, "format": format_struct(form), "weight": weight}
    return Call("qwq_pack", arguments | {"N": N, "K": K, "step": 1, "threads": 1})


def words_call(rng, form, layout, bits):
    """Packing of codes that are in words, in every second panel."""
    unit = {2: 16, 4: 8, 8: 4}.get(bits, 32)  # columns that fill whole words
    N, K, order = int(rng.choice(TAILS)), unit * int(rng.integers(1, 160 // unit)), None
    call = pack_call(rng, form, N, K)
    columns = K * bits // 32
    rows, size = {"rows": (N, columns), "columns": (columns, N), "eights": (K, -(-N // 8))}[layout]
    ld = size + int(rng.integers(0, 3))
    words = rng.integers(0, 1 << 32, (rows - 1) * ld + size, np.uint32)
    if layout == "columns" and rng.random() < 0.7:
        order = Array(rng.permutation(K).astype(np.int32), needed=False)
    fields = {"words": Array(words), "ld": ld, "order": order, "layout": LAYOUTS.index(layout), "bits": bits}
    weight = call.arguments["weight"]
    weight = Struct("qwq_weight", weight.fields | {"code": None, "words": Struct("qwq_words", fields, needed=False)})
    panels = -(-N // 32)
    packed = out(call.arguments["packed"].data.size // panels * (2 * panels - 1), dtype=np.uint8, align=64)
    return Call("qwq_pack", call.arguments | {"packed": packed, "weight": weight, "step": 2})


def packing(rng):
    """Packing of codes in words, and of ggml's blocks."""
    for layout in LAYOUTS:
        for codes, bits in (
            ("u4", 4),
            *(() if layout == "eights" else (("u4", 2), ("u4", 3), ("u5", 5), ("u6", 6), ("u8", 8))),
        ):
            yield words_call(rng, (codes, 64, "offset" if layout == "rows" else "zero", 0), layout, bits)
    for i, name in enumerate(core.BLOCK_TYPES):
        format, columns, size = core.block_of(name)
        N, blocks = int(rng.choice(TAILS)), int(rng.integers(1, 6))
        data = rng.integers(0, 0x70, (N, blocks * size)).astype(np.uint8)  # all scales are finite
        packed = out(core.packed_bytes(format, (N, blocks * columns)), dtype=np.uint8, align=64)
        sizes = {"N": N, "K": blocks * columns, "step": 1, "threads": 2}
        yield Call("qwq_pack_blocks", {"packed": packed, "data": Array(data), "type": i, **sizes})


def matmul(rng, form, tail):
    """Packing, and then the product: few tokens and many, every fusion."""
    T, N, threads = int(rng.choice([1, 2, 3, 5, 6, 7, 8, 12, 13, 20])), int(rng.choice(TAILS)), int(rng.integers(1, 3))
    K = tail + 64 * int(rng.integers(0, 10))
    swiglu = int(rng.random() < 0.3)
    N = 64 * int(rng.integers(1, 3)) if swiglu else N
    pack = pack_call(rng, form, N, K)
    yield pack
    w = Array(pack.results()["packed"], align=64)
    fusion = {"norm": None, "bias": None, "residual": None, "stop": going_on(), "eps": 1e-5, "swiglu": swiglu}
    for name, shape in (("norm", (K,)), ("bias", (N,)), ("residual", (T, N))):
        if rng.random() < 0.5 and not (swiglu and name == "residual"):
            fusion[name] = Array(rng.standard_normal(shape).astype(np.float32), needed=False)
    y = out(T, N // 2 if swiglu else N)
    room = scratch(core.lib.qwq_matmul_scratch(c_format(form), T, K, threads), 64)
    columns = Array(rng.permutation(K).astype(np.int32), needed=False) if rng.random() < 0.3 else None
    linear = Struct("qwq_linear", {"format": format_struct(form), "packed": w, "columns": columns})
    pointers = {"y": y, "w": linear, "x": floats(rng.standard_normal((T, K)))}
    pointers |= {"fusion": Struct("qwq_fusion", fusion, needed=False), "scratch": room}
    numbers = {"T": T, "N": N, "K": K, "isa": 0, "threads": threads}
    yield Call("qwq_matmul", pointers | numbers, frozenset({("y", "fusion.residual")}))


def kv_struct(rng, form, capacity, K, E):
    """A cache of garbage."""
    sizes = {"capacity": capacity, "K": K, "E": E, "int8": int(form == "int8")}
    pages = pages_struct(form, capacity, K, E)
    return Struct("qwq_kv", {"pages": pages, "bias": key_bias_struct(rng, form, capacity, K, E), **sizes})


def pages_struct(form, capacity, K, E):
    size, count = core_attention.page_bytes(form, K, E), core_attention.pages_of(capacity)
    return Table([Array(np.full(size, 0xFF, np.uint8), "inout", 64) for _ in range(count)])


def key_bias_struct(rng, form, capacity, K, E):
    """What int8 keys leave out, or a vector alone that they take off; nothing for float32."""
    if form == "fp32":
        return Struct("qwq_key_bias", {}, needed=False)
    if E % 2 or rng.random() < 0.3:
        bias = only_center(rng.standard_normal((K, E)).astype(np.float32))
    else:
        _, bias = drawn(rng, K, E, capacity)
    n = bias.first.shape[1]
    fields = {name: Array(getattr(bias, name), needed=False) for name in ("key_gain", "query_gain", "center")}
    fields |= {"pairs": n, "chunks": len(bias.turns), "most": bias.most}
    arrays = {"first": 4, "codes": 64, "scale": 4, "turns": 4}
    return Struct(
        "qwq_key_bias", fields | {name: Array(getattr(bias, name), align=align) for name, align in arrays.items() if n}
    )


def attention(rng, form, tail):
    """Appending in one piece to a cache of garbage, then attention of its last tokens."""
    E, K, G = tail, int(rng.integers(1, 3)), int(rng.integers(1, 9))
    S = int(rng.choice([1, 15, 17, 31, 33, 63, 65, 127, 129, 1023, 1025]))
    capacity, T = S, int(min(S, rng.choice([1, 2, 7, 49])))
    kv = kv_struct(rng, form, capacity, K, E)
    k, v = (floats(rng.standard_normal((S, K, E))) for _ in range(2))
    how = {"isa": 0, "threads": 2}
    append = Call("qwq_kv_append", {"kv": kv, "k": k, "v": v, "pos": 0, "T": S, **how})
    yield append
    results = append.results()
    kv = kv.changed("pages", Table([Array(results[name], "in", 64) for name in kv.fields["pages"].named("kv.pages")]))
    H = K * G
    fields = {"pos": S - T, "T": T, "H": H, "window": int(rng.choice([0, 1, 16, 1000])), "stop": going_on()}
    fields["p_bits"] = int(rng.choice([0, 8, 16])) if form == "int8" else 0
    queries = Struct("qwq_queries", fields)
    room = scratch(core.lib.qwq_attention_scratch(unplaced("kv", kv), unplaced("queries", queries), 2), 1)
    pointers = {"y": out(T, H, E), "kv": kv, "q": floats(rng.standard_normal((T, H, E))), "scratch": room}
    yield Call("qwq_attention", pointers | {"queries": queries} | how)


def unplaced(name, value):
    """A C struct whose arrays are nowhere, to ask for sizes."""
    struct = core.ffi.new(f"{value.kind} *")
    value.fill(struct, name, dict.fromkeys(value.arrays(name), 0))
    return struct


def linear(rng, form, N, K):
    packed = Array(pack_call(rng, form, N, K).results()["packed"], align=64)
    return Struct("qwq_linear", {"format": format_struct(form), "packed": packed, "columns": None})


NOTHING = Struct("qwq_linear", {"format": Struct("qwq_format", {}), "packed": None, "columns": None})


def layer(rng, forms, kv, tail):
    """A whole decoder layer, at the end of a cache of garbage but for what it appends itself.

    forms: of q, k and v, which are packed apart, or one for all.
    """
    D, F, E, K, G, T = tail, 32 * int(rng.integers(1, 3)), 2 * int(rng.integers(1, 9)), 2, int(rng.integers(1, 4)), 3
    H, threads, pos = K * G, int(rng.integers(1, 3)), 0
    q, k = H * E, K * E
    fields = {"D": D, "F": F, "H": H, "window": int(rng.choice([0, 2])), "eps": 1e-5}
    if len(forms) == 1:
        projections = {"fused": linear(rng, forms[0], q + 2 * k, D), "q": NOTHING, "k": NOTHING, "v": NOTHING}
    else:
        sizes = zip("qkv", forms, (q, k, k), strict=True)
        projections = {"fused": NOTHING} | {name: linear(rng, form, rows, D) for name, form, rows in sizes}
    fields["qkv"] = Struct("qwq_qkv", projections)
    for name, shape in {"o": (D, q), "gate_up": (2 * F, D), "down": (D, F)}.items():
        fields[name] = linear(rng, forms[0], *shape)
    for name, size in {"input_norm": D, "post_norm": D, "qkv_bias": q + 2 * k}.items():
        fields[name] = floats(rng.standard_normal(size))
    fields["kv"] = kv_struct(rng, kv, T, K, E).changed("pages", None)
    x = Array(rng.standard_normal((T, D)).astype(np.float32), "inout")
    tables = {name: floats(rng.standard_normal((T, E // 2))) for name in ("cos", "sin")}
    layer = Struct("qwq_layer", fields)
    struct = core.ffi.new("qwq_layer *")
    layer.fill(struct, "layer", dict.fromkeys(layer.arrays("layer"), core.ffi.cast("void *", 64)))
    sizes = {"capacity": T, "pos": pos, "T": T, "first": int(rng.integers(0, T + 1))}
    part = Struct("qwq_part", {"pages": pages_struct(kv, T, K, E), **sizes})
    room = scratch(core.lib.qwq_layer_scratch(struct, unplaced("parts", part), 1, threads), 64)
    call = {"x": x, "layer": layer, "parts": part, "count": 1, **tables, "scratch": room, "stop": going_on()}
    call |= {"isa": 0, "threads": threads}
    yield Call("qwq_layer_step", call)


def reading(rng):
    data = Array(rng.integers(0, 256, 1024).astype(np.uint8), align=64)
    for order in range(3):
        yield Call("qwq_read", {"data": data, "bytes": 1024, "order": order, "isa": 0, "threads": 2})


def going_on():
    """A flag that stops nothing."""
    return Array(np.zeros(1, np.int32), needed=False)


def floats(x):
    return Array(np.asarray(x, np.float32))


def every(seed, tails=TAILS, formats=FORMATS):
    """Calls of every entry point, on scalar code: set isa and threads as you like."""
    rng = np.random.default_rng(seed)
    for tail in tails:
        yield from small(rng, tail)
        for form in ("int8", "fp32"):
            yield from attention(rng, form, tail)
            first = tail % len(formats)
            yield from layer(rng, formats[first : first + 1], form, tail)
            yield from layer(rng, [formats[(first + 11 * i) % len(formats)] for i in range(3)], form, tail)
    yield from quantising(rng)
    yield from packing(rng)
    yield from reading(rng)
    for i, form in enumerate(formats):
        yield from matmul(rng, form, tails[i % len(tails)])
