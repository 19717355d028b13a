"""The engine's threads: an interruption at any moment leaves none behind that the process would wait for."""

import threading

import pytest

from qwq_ref.engine import thread
from tests.support.servers import until


def test_an_interruption_while_a_thread_starts_leaves_no_thread_behind(monkeypatch):
    """The executor has not noted the thread yet. It would wait for work for ever, and the process for it at its end."""
    start, pool, began = threading.Thread.start, thread.Pool(1, "qwq-interrupted"), threading.Event()

    def interrupted(self):
        start(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(began.set)
    until(lambda: not [each for each in threading.enumerate() if each.name.startswith("qwq-interrupted")])
    assert pool.submit(lambda: 5).result(10) == 5
    pool.shutdown()


def test_an_interruption_while_the_engines_thread_starts_stops_the_work(monkeypatch):
    start = threading.Thread.start
    monkeypatch.setattr(thread, "_pool", thread.Pool(1, "qwq-interrupted"))

    def interrupted(self):
        start(self)
        raise KeyboardInterrupt

    def work(stop):
        until(lambda: stop.is_set)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.call(work)
    until(lambda: not [each for each in threading.enumerate() if each.name.startswith("qwq-interrupted")])
    assert thread.call(lambda stop: 5) == 5
