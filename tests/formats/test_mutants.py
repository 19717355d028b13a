"""A small share of `python -m tests.tools.mutate`, and that its judge notices each kind of fault."""

import io
import mmap
import re
import sys
import warnings

import pytest

from qwq_ref.errors import ConfigError
from tests.support import mutants
from tests.support.mutant_kinds import KINDS, Kind
from tests.tools import mutate

COUNTS = {"template": 3, "golden": 12, "packed": 20, "gguf": 1000, "quantised": 1000}


@pytest.mark.parametrize("name", KINDS)
def test_each_mutant_is_refused_or_read_rightly(name, tmp_path, capfd):
    kind = KINDS[name](tmp_path / name)
    outcomes = [mutate.one(kind, name, number, 0, io.StringIO()) for number in range(COUNTS.get(name, 40))]
    assert [result.get("fault") for result in outcomes] == [None] * len(outcomes)
    assert capfd.readouterr() == ("", "")
    assert {result["outcome"] for result in outcomes} <= {"refused", "same", "read"}


def test_every_kind_has_a_share():
    assert sum(mutate.SHARES.values()) == 100
    assert set(KINDS) <= set(mutate.SHARES)


def test_a_seed_gives_the_same_mutants(tmp_path):
    kind = KINDS["config"](tmp_path)
    first, again, other = (kind.put(mutants.rng_of(seed, "config", 5))[1] for seed in (0, 0, 1))
    assert first == again != other


class Faulty(Kind):
    """A reader that does `act` with a mutant, and a sound one with the sound file."""

    files = ("x.json",)
    act = staticmethod(lambda: "sound")

    def prepare(self):
        (self.folder / "x.json").write_text('{"a": 1}')

    def read(self):
        return self.act()

    def check(self, answer, name, data):
        assert answer == "sound", "not the sound answer"


def raises(error):
    def act():
        raise error

    return act


def slow():
    mutate.time.sleep(0.05)
    return "sound"


def large():
    with mmap.mmap(-1, 90_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:  # malloc may have pages to reuse
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
    return "sound"


FAULTS = {
    "a wrong answer: not the sound answer": lambda: "other",
    "ValueError: x": raises(ValueError("x")),
    "not one line that names a file": raises(ConfigError(None, "x", "y")),
    "warned: careful": lambda: warnings.warn("careful", stacklevel=1),
    "printed 'noise": lambda: print("noise"),
    r"took \d+\.\d s and -?[\d,]{1,9} bytes": slow,
    r"took \d+\.\d s and \d\d,\d{3},\d{3} bytes": large,
}


@pytest.mark.parametrize("words", FAULTS)
def test_the_judge_notices(words, tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "SECONDS", 0.04 if FAULTS[words] is slow else 99.0)
    monkeypatch.setattr(mutate, "BYTES", 20_000_000)
    kind = Faulty(tmp_path)
    capture = io.StringIO()
    monkeypatch.setattr(sys, "stdout", capture)
    kind.act = FAULTS[words]
    result = mutate.one(kind, "x", 0, 0, capture)
    assert result["outcome"] == "fault"
    assert re.match(words, result["fault"])
    kind.act = lambda: "sound"
    assert mutate.one(kind, "x", 0, 0, capture)["outcome"] == "same"


def test_a_crash_and_a_hang_are_faults_of_one_mutant(monkeypatch):
    """The child says which mutant it reads; the next child goes on after it."""
    script = (
        "import os, sys, json, time; name, first, count = sys.argv[1:4]; pipe = open(int(sys.argv[7]), 'w')\n"
        "for n in range(int(first), int(first) + int(count)):\n"
        "    pipe.write(f'{n}\\n'); pipe.flush()\n"
        "    if n == 1: os.abort()\n"
        "    if n == 3: time.sleep(60)\n"
        "    pipe.write(json.dumps({'outcome': 'same', 'seconds': 0.1, 'bytes': n}) + '\\n'); pipe.flush()\n"
    )
    popen = mutate.subprocess.Popen

    def start(command, **options):
        return popen([sys.executable, "-c", script, *command[4:]], **options)

    monkeypatch.setattr(mutate.subprocess, "Popen", start)
    monkeypatch.setattr(mutate, "HANG", 3.0)
    line = mutate.chunk("config", 0, 5, 0)
    assert line["faults"] == {1: "crash: status -6", 3: "hang"}
    assert (line["same"], line["fault"], line["worst"]["bytes"]) == (3, 2, [4, 4])
