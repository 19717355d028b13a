"""Weights that are read in each pass give the bits of weights in memory, in the memory that their layout counts."""

import gc
import itertools
import threading
import time
import weakref

import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.core.formats import ALIGN
from qwq_ref.engine import streaming, thread
from qwq_ref.engine.backends import ALL, LAST, Step
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.packing import pack_weights
from qwq_ref.engine.plan import HEAD, NORM, layer_names
from qwq_ref.engine.streaming import Layout, StreamedWeights
from qwq_ref.errors import CheckpointError
from tests.support.models import config_values, random_weights

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

CONFIG = Config.from_dict(config_values(num_hidden_layers=7, vocab_size=500))
IDS = [5, 9, 1, 200, 7, 7, 30, 12]


class Copies:
    """A `WeightReader` of weights in memory. It keeps a list of what it was asked for."""

    def __init__(self, weights):
        self.weights, self.asked, self.problem = weights, [], None

    def matrices(self, name):
        for i, layer in enumerate(self.weights.layers):
            names = layer_names(i)
            if name in names:
                fields = ("input_norm", "qkv", "qkv_bias", "o", "post_norm", "gate_up", "down")
                return getattr(layer, fields[names.index(name)])
        return {NORM: self.weights.norm, HEAD: self.weights.head}[name]

    def fill(self, name, out, begin=0):
        self.asked.append((name, begin))
        if self.problem is not None:
            problem, self.problem = self.problem, None
            raise problem
        whole = self.matrices(name)
        out.packed[:] = whole.rows(begin, begin + out.shape[0]).packed

    def vector(self, name):
        return self.matrices(name).copy()

    def embed(self, ids):
        return self.weights.embed(ids)


@pytest.fixture(scope="module", params=["fp32", "q4"])
def whole(request):
    return pack_weights(CONFIG, random_weights(CONFIG, 0), request.param, 2)


def streamed(whole, memory):
    layout = Layout.of(CONFIG, whole.form, memory)
    reader = Copies(whole)
    return StreamedWeights(CONFIG, whole.form, layout, reader), reader


def memories(whole):
    """Room for nothing but the slots, for some parts, and for all."""
    least = Layout.of(CONFIG, whole.form, 0).nbytes
    return [0, least, least * 3 // 2, least * 2, sum(Layout.of(CONFIG, whole.form, 0).sizes)]


def test_the_bits_are_those_of_weights_in_memory(whole):
    true = CoreBackend(CONFIG, whole, 64)
    sequence = true.sequence()
    wanted = [true.run(ids, sequence, rows) for ids, rows in ((IDS, ALL), ([3], LAST), ([4, 9], ALL))]
    for memory in memories(whole):
        weights, reader = streamed(whole, memory)
        backend = CoreBackend(CONFIG, weights, 64)
        sequence = backend.sequence()
        found = [backend.run(ids, sequence, rows) for ids, rows in ((IDS, ALL), ([3], LAST), ([4, 9], ALL))]
        for ours, each in zip(found, wanted, strict=True):
            assert np.array_equal(ours, each)
        assert backend.streams == (weights.streamed > 0) == (memory < memories(whole)[-1])
        assert reader.asked


def test_a_shared_pass_reads_each_part_once(whole):
    weights, reader = streamed(whole, 0)
    backend = CoreBackend(CONFIG, weights, 64)
    parts = sum(map(len, weights.layout.parts))
    backend.run_together([Step([1, 2, i], backend.sequence(), LAST) for i in range(5)])
    weights._pool.submit(int).result()  # what is read ahead for the next pass
    ahead = sum(len(weights.layout.parts[part]) for part in range(streaming.SLOTS))
    assert parts <= len(reader.asked) <= parts + ahead


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0, 2.0])
def test_a_layout_keeps_what_fits(whole, share):
    everything = sum(Layout.of(CONFIG, whole.form, 0).sizes)
    layout = Layout.of(CONFIG, whole.form, int(share * everything))
    least = Layout.of(CONFIG, whole.form, 0)
    assert layout.nbytes <= max(int(share * everything), least.nbytes)
    assert layout.streamed == sum(size for size, kept in zip(layout.sizes, layout.kept, strict=True) if not kept)
    if share >= 1:
        assert layout.streamed == 0
    elif layout.nbytes + layout.slot <= share * everything:
        assert sum(layout.kept) == len(layout.kept) - 1
    rows = [(piece.begin, piece.begin + piece.stored.shape[0]) for (piece, *_) in layout.parts[CONFIG.L :]]
    assert rows[0][0] == 0
    assert rows[-1][1] == CONFIG.V
    assert all(end == begin and end % 64 == 0 for (_, end), (begin, _) in itertools.pairwise(rows))


def test_memory_is_what_the_layout_counts(whole, monkeypatch):
    """Kept parts and slots, and no more."""
    for memory in memories(whole):
        sizes = []

        def counted(size, sizes=sizes):
            sizes.append(size)
            return core.memory.aligned(size)

        with monkeypatch.context() as patch:
            patch.setattr(streaming.core, "aligned", counted)
            weights, _ = streamed(whole, memory)
        assert sum(sizes) == weights.layout.nbytes
        assert all(size % ALIGN == 0 for size in sizes)


def test_a_failed_reading_is_told_and_tried_again(whole):
    weights, reader = streamed(whole, 0)
    backend = CoreBackend(CONFIG, weights, 64)
    wanted = backend.run(IDS, backend.sequence(), LAST)
    sequence = backend.sequence()
    reader.problem = CheckpointError("w.safetensors", "x", "is shorter than it was")

    def twice():
        """The first part of a pass may have been read ahead."""
        for _ in range(2):
            backend.run(IDS, sequence, LAST)
            sequence.rollback(0)

    with pytest.raises(CheckpointError, match="is shorter than it was"):
        twice()
    assert sequence.length == 0
    assert np.array_equal(backend.run(IDS, sequence, LAST), wanted)


def test_an_interruption_while_reading_is_heard(whole, monkeypatch):
    weights, reader = streamed(whole, 0)
    backend = CoreBackend(CONFIG, weights, 64)
    wanted = backend.run(IDS, backend.sequence(), LAST)
    release, fill = threading.Event(), reader.fill

    def slow(*given):
        assert release.wait(30)
        fill(*given)

    monkeypatch.setattr(reader, "fill", slow)
    sequence = backend.sequence()
    stop = core.Stop()
    monkeypatch.setattr(thread, "call", lambda work: work(stop))
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()

    def twice():
        for _ in range(2):
            backend.run(IDS, sequence, LAST)
            sequence.rollback(0)

    with pytest.raises(core.Stopped):
        twice()
    assert time.monotonic() - started < 5
    release.set()
    stop.clear()
    assert np.array_equal(backend.run(IDS, sequence, LAST), wanted)


def test_a_model_that_is_gone_frees_its_memory(whole):
    weights, _ = streamed(whole, 0)
    backend = CoreBackend(CONFIG, weights, 64)
    backend.run(IDS, backend.sequence(), LAST)
    gone = weakref.ref(weights)
    del weights, backend
    gc.collect()
    assert gone() is None
