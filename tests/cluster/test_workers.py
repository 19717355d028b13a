"""Work over machines, behind a stand-in for Ray: order, losses, errors, and the same answers as in one process.

`test_ray.py` runs the same on a cluster.
"""

import asyncio
import functools
import os
import signal
import sys
import types

import numpy as np
import pytest

import qwq_ref
from qwq_ref import cli, core
from qwq_ref.cluster import connect, workers
from qwq_ref.cluster.connect import Node, checked_address
from qwq_ref.cluster.generations import answering, generations
from qwq_ref.cluster.load import Wishes, whole_elsewhere
from qwq_ref.cluster.workers import Worker, Workers
from qwq_ref.engine.settings import Settings
from qwq_ref.errors import CheckpointError, ClusterError, UsageError
from qwq_ref.spec import Sampling
from qwq_ref.train.rollout import answers_each, answers_over


class RayError(Exception):
    """The base of Ray's errors."""


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(f"work failed: {cause}")
        self.cause = cause


class Actor:
    """A process: it answers `do`, until the work `dies` is given to it, or the test kills it."""

    def __init__(self, made, cluster):
        self.made, self.cluster, self.dead = made, cluster, False
        self.do = types.SimpleNamespace(remote=lambda *arguments: self._do(*arguments))

    async def _do(self, function, item):
        await asyncio.sleep(0)
        self.cluster.asked.append(item)
        if self.dead or self.cluster.deadly(self, item):
            self.dead = True
            raise RayError("the process died\nin two lines")
        try:
            found = await self.made.do(function, item)
        except Exception as problem:
            raise RayTaskError(problem) from None
        if self.dead:
            raise RayError("the process died")
        return found


class Cluster:
    """The parts of the module `ray` that workers use."""

    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, machines):
        self.alive = {f"node{i}": cpus for i, cpus in enumerate(machines)}
        self.machines, self.asked, self.actors = dict(self.alive), [], []
        self.deadly = lambda actor, item: False

    def nodes(self):
        return [
            {"NodeID": name, "Alive": name in self.alive, "NodeManagerAddress": name, "Resources": {"CPU": float(cpus)}}
            for name, cpus in self.machines.items()
        ]

    def kill(self, actor):
        actor.dead = True


@pytest.fixture(autouse=True)
def started(monkeypatch):
    monkeypatch.setattr(workers, "_PAUSE", 0)

    def start(self, node):
        actor = Actor(Worker(self.make, node.cpus, node.name), self.ray)
        actor.dead = node.id not in self.ray.alive
        actor.node = node.id
        self.ray.actors.append(actor)
        return actor

    monkeypatch.setattr(Workers, "_start", start)


def square(state, item):
    return state * item * item


async def slow_square(state, item):
    await asyncio.sleep(0.01 if item % 2 else 0)
    return square(state, item)


def fails(state, item):
    raise CheckpointError("a file", None, f"is broken at {item}")


def two(threads):
    return 2


@pytest.mark.parametrize("function", [square, slow_square])
def test_results_are_in_order(function):
    cluster, told = Cluster([1, 2]), []
    with Workers(cluster, two) as them:
        assert them.map(function, range(30), lambda n, r: told.append((n, r))) == [2 * n * n for n in range(30)]
    assert sorted(told) == [(n, 2 * n * n) for n in range(30)]
    assert sorted(cluster.asked) == [*range(30)]
    assert all(actor.dead for actor in cluster.actors)


def test_a_process_has_as_much_work_as_its_machine_has_processors():
    cluster, most = Cluster([1, 3]), {}

    async def note(state, item):
        for place in them.places:
            most[place.node.id] = max(most.get(place.node.id, 0), place.busy)
        await asyncio.sleep(0)

    with Workers(cluster, two) as them:
        them.map(note, range(40))
    assert most == {"node0": 1, "node1": 3}


def test_a_process_that_dies_is_started_again():
    cluster, lines = Cluster([1, 1]), []
    cluster.deadly = lambda actor, item: item == 7 and len(cluster.actors) == 2
    with Workers(cluster, two, told=lines.append) as them:
        assert them.map(square, range(20)) == [2 * n * n for n in range(20)]
        assert len(cluster.actors) == 3
    assert len(lines) == 1
    assert lines[0].endswith("was lost and is started again: the process died in two lines")


def test_a_machine_that_dies_is_given_up():
    cluster, lines = Cluster([1, 1, 1]), []

    def gone(actor, item):
        if item == 5:
            cluster.alive.pop("node1", None)
        return actor.node not in cluster.alive

    cluster.deadly = gone
    with Workers(cluster, two, told=lines.append) as them:
        assert them.map(square, range(40)) == [2 * n * n for n in range(40)]
        assert [place.node.id for place in them.places] == ["node0", "node2"]
    assert lines == ["node1 was lost; 2 machines go on: the process died in two lines"]


def test_all_machines_lost():
    cluster = Cluster([1, 1])
    cluster.deadly = lambda actor, item: cluster.alive.clear() or True
    with Workers(cluster, two) as them, pytest.raises(ClusterError, match=r"^ray: all machines are lost$"):
        them.map(square, range(9))


def test_work_that_kills_each_process_is_given_up():
    cluster = Cluster([1] * 3)
    cluster.deadly = lambda actor, item: item == 3
    with Workers(cluster, two) as them, pytest.raises(ClusterError, match=r"4 processes were lost with the same work"):
        them.map(square, range(9))


def test_an_error_of_the_work_is_raised_and_nothing_repeated():
    cluster = Cluster([1])
    with Workers(cluster, two) as them, pytest.raises(CheckpointError, match=r"^a file: is broken at 0$"):
        them.map(fails, range(5))
    assert cluster.asked == [0]


def broken(threads):
    raise CheckpointError("a file", "a tensor", "is broken")


def test_a_model_that_does_not_load_names_the_machine():
    with (
        Workers(Cluster([1]), broken) as them,
        pytest.raises(ClusterError, match=r"^machine node0: a file: a tensor: is broken$"),
    ):
        them.map(square, range(5))


def test_an_interruption_ends_the_processes():
    cluster, signals = Cluster([1, 1]), [signal.SIGINT]

    def interrupt(number, result):
        if signals:
            signal.raise_signal(signals.pop())

    with pytest.raises(KeyboardInterrupt), Workers(cluster, two) as them:
        them.map(square, range(50), interrupt)
    assert all(actor.dead for actor in cluster.actors)
    assert len(cluster.asked) < 50


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    if not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    return qwq_ref.load("qwq-nano", threads=1)


def dying_once(cluster):
    """The first process to begin a second piece of work dies."""
    counts = {}

    def deadly(actor, item):
        counts[id(actor)] = counts.get(id(actor), 0) + 1
        return counts[id(actor)] == 2 and not any(each.dead for each in cluster.actors)

    return deadly


def test_answers_over_machines_are_those_of_one(model):
    rng, cluster = np.random.default_rng(0), Cluster([1, 2, 1])
    prompts = [rng.integers(0, 300, n).tolist() for n in rng.integers(1, 20, 23)]
    how = {"end_ids": [*model.end_tokens], "vocabulary": 400, "max_tokens": 12, "seed": 5}
    right, counts = answers_each(model.backend, prompts, Sampling(0.9), **how), []
    cluster.deadly = dying_once(cluster)
    with Workers(cluster, lambda threads: model) as machines:
        assert answers_over(machines, prompts, Sampling(0.9), progress=counts.append, **how) == right
    assert sum(counts) == 23
    assert len(cluster.actors) == 4


def test_generations_are_those_of_one_machine(model):
    wishes = Wishes("qwq-nano", model.path)
    far, there = whole_elsewhere(wishes)
    assert (there.weights, there.kv, there.context) == (model.backend.form, model.backend.kv, model.context)
    questions = ["What is 12+34?", "Sort 42,17,88,23.", "hello", "What is 9*9?", "Sort 3,1."]
    settings = [Settings.checked(seed=n, max_tokens=30, temperature=0.8) for n in range(len(questions))]
    asked = [(far.prompt_ids(text), how) for text, how in zip(questions, settings, strict=True)]
    cluster = Cluster([1, 1])
    cluster.deadly = dying_once(cluster)
    with Workers(cluster, functools.partial(answering, there, 2), room=4) as machines:
        found = generations(machines, asked)
    for said, text, how in zip(found, questions, settings, strict=True):
        right = model.generate(text, seed=how.seed, max_tokens=30, temperature=0.8)
        words = "".join(map(str, right))
        assert said.ids == right.run.output
        assert said.finish_reason == right.run.finish_reason
        assert said.texts["thinking"] + said.texts["answer"] == words
        assert (said.seed, said.prompt_tokens) == (how.seed, len(right.run.prompt))


def test_a_prompt_that_does_not_fit_is_an_error_of_its_own(model):
    _, there = whole_elsewhere(Wishes("qwq-nano", model.path))
    asked = [([1] * 5000, Settings.checked(max_tokens=3))]
    with (
        Workers(Cluster([1]), functools.partial(answering, there, 2)) as machines,
        pytest.raises(UsageError, match="do not fit"),
    ):
        generations(machines, asked)


def test_a_model_elsewhere_computes_nothing(model):
    far, _ = whole_elsewhere(Wishes("qwq-nano", model.path, weights="q4", context=200))
    assert (far.backend.form, far.backend.kv, far.context) == ("q4", "int8", 200)
    with pytest.raises(AttributeError, match="the weights are in other processes"):
        far.session()


# --- The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["local", "10.0.0.1:6379", "head.example:1", "[::1]:6379"])
def test_addresses(text):
    assert checked_address(text) == text


@pytest.mark.parametrize("text", ["", "auto", "head", ":6379", "head:", "head:65536", "head:-1", "ray://head:1", "a:b"])
def test_addresses_that_cannot_be(text, capsys):
    assert cli.main(["eval", "--ray", text]) == 2
    err = capsys.readouterr().err
    assert err.startswith("qwq: --ray: must be local, or HOST:PORT as `ray start --head` prints it, got ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["generate", "hi"], ["eval"], ["batch", os.devnull]])
def test_without_ray(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main([*command, "--ray", "local"]) == 2
    assert capsys.readouterr().err == "qwq: --ray: needs ray: pip install 'qwq_ref[ray]'\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("generate hi --stages 2", "--stages: needs --ray"),
        ("generate hi --ray local --prompt-cache x", "--prompt-cache: has no effect with --ray"),
        ("generate hi --ray local --backend numpy", "--backend: has no effect with --ray"),
        ("generate hi --ray local --watts 5", "--watts: has no effect with --ray"),
        ("eval --ray local --against fp32", "--against: has no effect with --ray"),
        ("eval --ray local --threads 5", "--threads: has no effect with --ray"),
        ("batch x --ray local --max-memory 5G", "--max-memory: has no effect with --ray"),
    ],
)
def test_options_that_do_not_go_together(command, says, monkeypatch, capsys):
    monkeypatch.setattr(connect, "require_ray", lambda: None)
    assert cli.main(command.split()) == 2
    assert capsys.readouterr().err == f"qwq: {says}\n"


def test_a_closed_address(monkeypatch, capsys):
    monkeypatch.setattr(connect, "require_ray", lambda: None)
    assert cli.main(["eval", "-n", "1", "--categories", "add3", "--ray", "127.0.0.1:1"]) == 1
    err = capsys.readouterr().err
    assert err == "qwq: 127.0.0.1:1: no Ray cluster answers (Connection refused): see `ray status` there\n"


def test_no_machine_with_a_processor():
    with pytest.raises(ClusterError, match="no machine of the cluster offers a processor"):
        connect.nodes(Cluster([0]))
    assert connect.nodes(Cluster([2])) == [Node("node0", "node0", 2, 0)]
