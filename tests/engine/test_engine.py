"""The core gives the spec's logits within its gates, and the same bits for every division of the work."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.core.layer import Layer, Part, Parts
from qwq_ref.engine.backends import LAST, logits
from qwq_ref.engine.backends import core as engine
from qwq_ref.engine.backends.core import SHORT, CoreBackend
from qwq_ref.engine.packing import pack_weights
from qwq_ref.engine.pages import Table
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.forms import FORMS
from qwq_ref.spec import forward, ops
from tests.support.models import config_values, random_weights

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ISAS = core.isas()


def last(backend, ids, *cuts, sequence=None):
    """Return the logits of the last id; the ids run in pieces that end at the cuts."""
    sequence = sequence or backend.sequence()
    for begin, end in itertools.pairwise([0, *cuts, len(ids)]):
        found = backend.run(ids[begin:end], sequence, LAST)[0]
    return found


def nmse(ours, true):
    return np.sum((ours - true) ** 2) / np.sum(true**2)


@pytest.fixture(scope="module")
def nano():
    with Checkpoint.open(resolve("qwq-nano")) as checkpoint:
        return checkpoint.config, {name: checkpoint[name] for name in checkpoint}


@pytest.fixture(scope="module")
def ids(nano):
    return np.random.default_rng(0).integers(0, nano[0].V, 200)


@pytest.mark.parametrize(("form", "most"), [("fp32", 1e-11), ("bf16", 1e-11), ("q8", 1e-3), ("q4", 5e-2)])
def test_logits_are_the_specs(nano, ids, form, most):
    """Floats stay within the gate of the spec's own float32, the others within the loss of their weights."""
    config, weights = nano
    true = forward(config, weights, ids, dtype=np.float64)[0]
    ours = logits(CoreBackend(config, pack_weights(config, weights, form, 2), 256), ids)
    assert nmse(ours, true) <= most
    if form in ("fp32", "bf16"):
        top = np.sort(true, axis=1)
        clear = top[:, -1] - top[:, -2] > 2 * np.abs(ours - true).max()
        assert np.array_equal(ours.argmax(1)[clear], true.argmax(1)[clear])


def test_an_int8_cache_costs_little(nano, ids):
    config, weights = nano
    true = forward(config, weights, ids, dtype=np.float64)[0]
    packed = pack_weights(config, weights, "fp32", 2)
    assert 1e-9 < nmse(logits(CoreBackend(config, packed, 256, "int8"), ids), true) <= 2e-4


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@pytest.mark.parametrize("form", FORMS)
def test_isa_and_threads_change_no_bit(nano, ids, form, kv, monkeypatch):
    monkeypatch.setattr(engine, "SHORT", 0)  # else one thread does what is so little
    config, weights = nano
    packed = pack_weights(config, weights, form, 2)
    wanted = logits(CoreBackend(config, packed, 256, kv), ids[:70])
    for isa in ISAS:
        for threads in (1, 2, 3, 8):
            few = 20 if isa == "scalar" else 70
            ours = logits(CoreBackend(config, packed, 256, kv, isa, threads), ids[:few])
            assert np.array_equal(ours, wanted[:few]), (isa, threads)


@given(st.data())
@settings(max_examples=settings.default.max_examples // 6)
def test_any_architecture(data):
    """Odd sizes, tied and untied heads, windows, a beta: compared with the spec in float64."""
    values = config_values(tie_word_embeddings=data.draw(st.booleans()))
    if data.draw(st.booleans()):
        values |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    config = Config.from_dict(values)
    weights = random_weights(config, data.draw(st.integers(0, 100)))
    ids = data.draw(st.lists(st.integers(0, config.V - 1), min_size=1, max_size=24))
    true = forward(config, weights, ids, dtype=np.float64)[0]
    theirs = nmse(forward(config, weights, ids)[0], true)
    ours = logits(CoreBackend(config, pack_weights(config, weights, "fp32", 1), 32), ids)
    assert nmse(ours, true) <= max(1e-11, 4 * theirs)


class Cuts(RuleBasedStateMachine):
    """Chunks of any size, roll-backs and replays: the logits of a position depend on the tokens before it alone."""

    @initialize(form=st.sampled_from(list(FORMS)), kv=st.sampled_from(["fp32", "int8"]), seed=st.integers(0, 1000))
    def start(self, form, kv, seed):
        engine.SHORT = 0 if seed % 2 else SHORT
        config = Config.from_dict(config_values())
        weights = {name: ops.to_bf16(w) for name, w in random_weights(config, 0).items()}
        weights = pack_weights(config, weights, form, 1)
        self.backend = CoreBackend(config, weights, 64, kv, threads=2)
        self.ids = np.random.default_rng(seed).integers(0, config.V, 64)
        self.wanted = logits(CoreBackend(config, weights, 64, kv), self.ids)
        self.sequence = self.backend.sequence()

    @precondition(lambda self: self.sequence.length < 64)
    @rule(size=st.integers(1, 30))
    def go_on(self, size):
        chunk = self.ids[self.sequence.length : self.sequence.length + size]
        (found,) = self.backend.run(chunk, self.sequence, LAST)
        assert np.array_equal(found, self.wanted[self.sequence.length - 1])

    @rule(size=st.integers(1, 40))
    def roll_back(self, size):
        self.sequence.rollback(max(0, self.sequence.length - size))

    @precondition(lambda self: self.sequence.length < 60)
    @rule(seed=st.integers(0, 99))
    def try_others(self, seed):
        """A rejected draft leaves no trace."""
        draft = np.random.default_rng(seed).integers(0, self.backend.config.V, 4)
        length = self.sequence.length
        self.backend.run(draft, self.sequence, LAST)
        self.sequence.rollback(length)

    def teardown(self):
        engine.SHORT = SHORT

    @rule()
    def another_sequence(self):
        """Two sequences are independent."""
        other = self.backend.sequence()
        self.backend.run(self.ids[::-1], other, LAST)


TestCuts = Cuts.TestCase
TestCuts.settings = settings(max_examples=settings.default.max_examples // 4, stateful_step_count=12)


def pages_for(backend, length):
    """A table of zeros for so many positions. Hold it while its addresses are used."""
    table = Table(backend.pool, length)
    table.prepare(0, length)
    for i in range(len(table.addresses)):
        table.bytes_of(i)[:] = 0
    return table


def test_a_layer_refuses_wrong_shapes_and_positions(nano):
    config, weights = nano
    backend = CoreBackend(config, pack_weights(config, weights, "q8", 1), 16)
    (layer, *_), pages = backend.layers, pages_for(backend, 16)
    x, table = np.zeros((2, config.D), np.float32), np.zeros((2, config.E // 2), np.float32)
    layer.step(x, Parts([Part(pages.addresses, 16, 14, 2)]), table, table, "scalar", 1)
    for arguments, message in (
        ((x, table, table, 15), "pos: 15 to 16 do not fit in a cache of 16"),
        ((x, table, table, -1), "do not fit"),
        ((x[:, :-1], table, table, 0), "x: must be contiguous float32"),
        ((x, table[:1], table, 0), "cos: must be"),
        ((x.astype(np.float64), table, table, 0), "x: must be"),
    ):
        with pytest.raises(core.CoreError, match=message):
            layer.step(arguments[0], Parts([Part(pages.addresses, 16, arguments[3], 2)]), *arguments[1:3], "scalar", 1)
    with pytest.raises(core.CoreError, match="missing"):
        layer.step(x, Parts([Part(np.zeros(1, np.uint64), 16, 0, 2)]), table, table, "scalar", 1)
    lib, ffi, one = core.lib, core.ffi, Parts([Part(pages.addresses, 16, 0, 1)]).list
    assert lib.qwq_layer_scratch(ffi.NULL, one, 1, 1) == 0
    assert lib.qwq_layer_scratch(layer._layer, ffi.NULL, 1, 1) == 0
    for field in ("D", "F", "H", "K", "E"):
        for value in (0, 2**40):
            broken = ffi.new("qwq_layer *", layer._layer[0])
            setattr(broken.kv if field in "KE" else broken, field, value)
            assert lib.qwq_layer_scratch(broken, one, 1, 1) == 0
            assert lib.qwq_layer_step(ffi.NULL, broken, one, 1, *[ffi.NULL] * 4, 0, 1) == lib.QWQ_ESIZE
    for field, value in (("T", 2**40), ("pos", 2**40), ("first", 2), ("capacity", 0)):
        wrong = ffi.new("qwq_part[]", [one[0]])
        setattr(wrong[0], field, value)
        assert lib.qwq_layer_scratch(layer._layer, wrong, 1, 1) == 0
        assert lib.qwq_layer_step(ffi.NULL, layer._layer, wrong, 1, *[ffi.NULL] * 4, 0, 1) == lib.QWQ_ESIZE
    assert lib.qwq_layer_step(ffi.NULL, layer._layer, one, 1, *[ffi.NULL] * 4, 0, 1) == lib.QWQ_ENULL


def test_impossible_ids_are_refused(nano):
    config, weights = nano
    backend = CoreBackend(config, pack_weights(config, weights, "q8", 1), 16)
    for ids in ([], [config.V], [-1], [[1]], [0.5]):
        with pytest.raises(ValueError, match="token_ids must be"):
            backend.run(ids, backend.sequence(), LAST)
    with pytest.raises(ValueError, match="do not fit in a context of 16"):
        logits(backend, [1] * 17)


# --- The engine's thread ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide():
    """A model with steps long enough for the engine's thread, and for an interruption."""
    config = Config.from_dict(config_values(hidden_size=512, intermediate_size=4096, num_hidden_layers=4))
    weights = pack_weights(config, random_weights(config, 0), "q4", 2)
    return CoreBackend(config, weights, 4096, "int8", threads=2)


def test_one_thread_computes_for_all_callers(wide, monkeypatch):
    """The pool serves one call at a time, so long calls come from one thread; short steps run on the calling thread."""
    seen, step = [], Layer.step
    monkeypatch.setattr(Layer, "step", lambda *a: (seen.append(threading.current_thread().name), step(*a))[1])
    ids = np.arange(600) % 50
    results = []
    callers = [threading.Thread(target=lambda: results.append(last(wide, ids[:512]))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(set(seen)) == 1
    assert seen[0].startswith("qwq-engine")
    assert all(np.array_equal(result, results[0]) for result in results)
    seen.clear()
    last(wide, ids[:1])
    assert set(seen) == {threading.current_thread().name}


def test_an_interrupted_step_leaves_the_sequence_unchanged(wide, monkeypatch):
    ids = np.random.default_rng(0).integers(0, wide.config.V, 1400)
    wanted = last(wide, ids[:1000], 500)
    sequence = wide.sequence()
    last(wide, ids[:500], sequence=sequence)
    calls, step = [], Layer.step

    def interrupted(self, *arguments):
        """Send Ctrl-C to the main thread during the second layer."""
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            deadline = time.monotonic() + 20
            while not arguments[-1].flag[0] and time.monotonic() < deadline:
                time.sleep(1e-4)
        return step(self, *arguments)

    monkeypatch.setattr(Layer, "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            wide.run(ids[500:1000], sequence, LAST)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 2, "no layer ran after the one that was stopped"
    monkeypatch.undo()
    assert sequence.length == 500
    (again,) = wide.run(ids[500:1000], sequence, LAST)
    assert np.array_equal(again, wanted)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@pytest.mark.parametrize("first", [0, 1, 6, 7])
def test_rows_without_output(wide, kv, first):
    """They leave keys and values behind, and no output."""
    backend = CoreBackend(wide.config, wide.weights, 20, kv)
    (layer, *_), tables = backend.layers, [pages_for(backend, 20) for _ in range(2)]

    def step(x, table, pos, first=0):
        layer.step(x, Parts([Part(table.addresses, 20, pos, 7, first)]), cos, cos, ISAS[-1], 2)

    x = np.random.default_rng(0).standard_normal((7, wide.config.D)).astype(np.float32)
    cos = np.ones((7, wide.config.E // 2), np.float32)
    whole, part = x.copy(), x.copy()
    step(whole, tables[0], 0)
    step(part, tables[1], 0, first)
    assert np.array_equal(part[: 7 - first], whole[first:])
    after = [x.copy(), x.copy()]
    for table, later in zip(tables, after, strict=True):
        step(later, table, 7)
    assert np.array_equal(*after)
    with pytest.raises(core.CoreError, match="first: must be 0 to 7, got 8"):
        step(part, tables[1], 0, 8)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@pytest.mark.parametrize("T", [1, 100])
def test_a_flag_stops_a_layer_and_a_product(wide, kv, T):
    backend = CoreBackend(wide.config, wide.weights, 2000, kv, threads=2)
    (layer, *_), stop = backend.layers, core.Stop()
    parts = Parts([Part(pages_for(backend, 1100).addresses, 2000, 1000, T)])
    x = np.ones((T, wide.config.D), np.float32)
    cos = np.ones((T, wide.config.E // 2), np.float32)
    layer.step(x, parts, cos, cos, ISAS[-1], 2, stop)
    stop.set()
    with pytest.raises(core.Stopped):
        layer.step(x, parts, cos, cos, ISAS[-1], 2, stop)
    y = np.full((T, wide.config.V), 7, np.float32)
    with pytest.raises(core.Stopped):
        core.matmul(x, wide.weights.head, stop=stop, out=y)
    assert (y == 7).all(), "it was computed all the same"
    stop.clear()
    core.matmul(x, wide.weights.head, stop=stop)


def test_a_forked_child_computes_with_threads_of_its_own(wide):
    """The child has neither the engine's thread nor the pool's, and must not wait for them."""
    ids = np.arange(512) % 50
    wanted = last(wide, ids)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if np.array_equal(last(wide, ids), wanted) else 2)
        finally:
            os._exit(1)
    for _ in range(3000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a thread that it does not have")
    assert os.waitstatus_to_exitcode(status) == 0
