"""The choices of `qwq doctor` agree with the loader: forms, contexts, missing memory, and the best of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine import choices as choosing
from qwq_ref.engine import fit
from qwq_ref.engine.plan import model_bytes
from qwq_ref.errors import MemoryLimitError
from qwq_ref.formats import resolve
from qwq_ref.forms import FORMS
from qwq_ref.host import memory
from tests.support.models import configs

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
BF16 = {"BF16": 0}
NANO = Config.from_file(resolve("qwq-nano") / "config.json")


def accepts(config, stored, form, kv, context, available):
    """Return the context that `load` would make room for; None if it would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_bytes", lambda: available)
        try:
            if not core.available():
                return fit.fitting_context(config, context, "m", fit.numpy_needs(config))
            forms = [form] if form else fit.candidates(stored)
            return fit.fitting_forms(config, forms, kv, context, "m")[2]
        except MemoryLimitError:
            return None


@st.composite
def machines(draw):
    """A config, the dtypes of its checkpoint, and about as much memory as one of its forms needs with some context."""
    values = draw(configs()) | {"max_position_embeddings": draw(st.sampled_from([9, 300, 4096, 50_000]))}
    config = Config.from_dict(values)
    stored = draw(st.sampled_from([BF16, {"F32": 1}, {"BF16": 1, "F32": 1}]))
    form, kv = draw(st.sampled_from([*FORMS])), draw(st.sampled_from(["fp32", "int8"]))
    needs = fit.core_needs(config, form, kv) if core.available() else fit.numpy_needs(config)
    some = sum(needs(draw(st.integers(1, config.positions))).values())
    return config, stored, max(0, some + draw(st.integers(-5000, 5000)))


@settings(max_examples=settings.default.max_examples * 2)
@given(machines())
def test_the_table_agrees_with_load(planted):
    config, stored, available = planted
    table = choosing.choices(config, stored, available)
    if core.available():
        forms = [form for form in FORMS if form != "bf16" or stored == BF16]
        assert [(c.weights, c.kv) for c in table] == [(form, kv) for form in forms for kv in ("fp32", "int8")]
    for choice in table:
        loads = accepts(config, stored, choice.weights, choice.kv, None, available)
        assert (loads is not None) == (choice.missing_bytes == 0)
        assert loads is None or loads <= choice.largest_context
        enough = available + choice.missing_bytes
        assert accepts(config, stored, choice.weights, choice.kv, None, enough) is not None
        if choice.missing_bytes:
            assert accepts(config, stored, choice.weights, choice.kv, None, enough - 1) is None
        largest = choice.largest_context
        assert 0 <= largest <= config.positions
        if largest:
            assert accepts(config, stored, choice.weights, choice.kv, largest, available) == largest
        if largest < config.positions:
            assert accepts(config, stored, choice.weights, choice.kv, largest + 1, available) is None
        if core.available():
            assert choice.weight_bytes == model_bytes(config, choice.weights)


@settings(max_examples=settings.default.max_examples * 2)
@given(machines())
def test_the_best_choice_is_the_most_exact_with_room_and_loads(planted):
    config, stored, available = planted
    table = choosing.choices(config, stored, available)
    order = [("fp32", "fp32")]
    if core.available():
        own = "bf16" if stored == BF16 else "fp32"
        order = [(own, "fp32"), (own, "int8"), ("q8", "int8"), ("q4", "int8")]
    spared = available - min(choosing.SPARE, available // 16)
    rooms = {}  # of what loads: the whole context, or as many pieces of a prompt as leave something
    for pair in order:
        if accepts(config, stored, *pair, None, available) is not None:
            pieces = [config.positions, *range(config.positions // 256 * 256, 0, -256)]
            rooms[pair] = next((n for n in pieces if accepts(config, stored, *pair, n, spared)), min(pieces[0], 256))
    best = choosing.best_choice(config, stored, table, available)
    if not rooms:
        assert best is None
        return
    choice, context = best
    enough = [pair for pair, room in rooms.items() if room >= min(config.positions, choosing.ROOMY)]
    assert (choice.weights, choice.kv) == (enough[0] if enough else max(rooms, key=rooms.get))
    assert context == rooms[choice.weights, choice.kv]
    assert accepts(config, stored, choice.weights, choice.kv, context, available) == context
    assert choice in table


@needs_core
@pytest.mark.parametrize(("form", "kv"), [("bf16", "fp32"), ("q8", "int8"), ("q4", "fp32")])
def test_a_real_model_loads_with_the_largest_context_of_the_table_and_no_more(monkeypatch, form, kv):
    available = sum(fit.core_needs(NANO, form, kv)(700).values())
    (choice,) = [c for c in choosing.choices(NANO, BF16, available) if (c.weights, c.kv) == (form, kv)]
    assert 700 <= choice.largest_context < 1024
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    model = qwq_ref.load("qwq-nano", weights=form, kv=kv, context=choice.largest_context)
    assert (model.context, model.backend.form, model.backend.kv) == (choice.largest_context, form, kv)
    with pytest.raises(MemoryLimitError):
        qwq_ref.load("qwq-nano", weights=form, kv=kv, context=choice.largest_context + 1)


@needs_core
def test_an_error_of_memory_advises_what_fits(monkeypatch):
    """The advice is the most exact form with the wanted context, or else the largest context of all."""

    def refused(available, **how):
        monkeypatch.setattr(memory, "available_bytes", lambda: available)
        with pytest.raises(MemoryLimitError) as caught:
            qwq_ref.load("qwq-nano", **how)
        return str(caught.value).partition(" available")[2]

    def needed(form, kv, context):
        return sum(fit.core_needs(NANO, form, kv)(context).values())

    room = needed("q8", "int8", 1024)
    assert refused(room, weights="fp32") == "; weights q8 with KV cache int8 fit"
    assert refused(room, weights="bf16", context=1024) == "; weights q8 with KV cache int8 fit"
    less = refused(needed("q4", "int8", 100), context=1024)
    assert less.startswith("; weights q4 with KV cache int8 and a context of 1")
    assert refused(1 << 10) == ""


@needs_core
def test_qwq_32b_on_machines_of_several_sizes():
    config = Config.from_file(resolve("qwq-32b") / "config.json")

    def best(size):
        found = choosing.best_choice(config, BF16, choosing.choices(config, BF16, int(size * 2**30)), int(size * 2**30))
        return found and (found[0].weights, found[0].kv, found[1])

    assert [best(size) for size in (16, 32, 48, 128)] == [
        None,
        ("q4", "int8", 40_960),
        ("q8", "int8", 40_960),
        ("bf16", "fp32", 40_960),
    ]
    form, kv, context = best(18.4)  # less than is good, and yet the most that there is
    assert (form, kv) == ("q4", "int8")
    assert 1024 <= context < choosing.ROOMY
    assert next(c for c in choosing.choices(config, BF16, 16 << 30) if c.weights == "q4").missing_bytes > 1 << 30
