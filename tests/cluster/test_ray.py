"""A cluster of three machines on this one: the bits of one process, also where a machine is lost on the way.

These tests are of the long tier: a cluster takes ten seconds to start, and Ray some more to notice a lost machine.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli.cluster import single_thread
from qwq_ref.cluster import connect
from qwq_ref.cluster.connect import connected, nodes
from qwq_ref.cluster.generations import generations, generations_over
from qwq_ref.cluster.load import Wishes, pipeline, whole_elsewhere
from qwq_ref.cluster.workers import Workers
from qwq_ref.engine.backends import ALL, LAST
from qwq_ref.engine.settings import Settings
from qwq_ref.errors import ClusterError
from qwq_ref.spec import Sampling
from qwq_ref.train.rollout import answers_each, answers_over

pytestmark = pytest.mark.long
pytest.importorskip("ray")
if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

RNG = np.random.default_rng(2)
STORE = 100 << 20


class Machines:
    """A cluster with a head that computes nothing, and machines of one processor each."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE},
        )
        self.there = []
        self.fill()

    @property
    def address(self):
        return self.cluster.address

    def fill(self):
        """Add machines until there are three."""
        while len(self.there) < 3:
            self.there.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE))
        self.cluster.wait_for_nodes(timeout=120)

    def lose(self, name):
        """Kill all processes of a machine at once."""
        (node,) = [each for each in self.there if each.node_id == name]
        self.there.remove(node)
        raylet = node.all_processes["raylet"][0].process.pid
        workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        self.cluster.remove_node(node, allow_graceful=False)
        for pid in workers:  # they would go on for a moment, until they miss their raylet
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module")
def started():
    connect.require_ray()
    machines = Machines()
    yield machines
    machines.cluster.shutdown()


@pytest.fixture
def machines(started, capfd):
    """Three machines. Nothing of Ray may appear on stdout, where answers stand."""
    started.fill()
    capfd.readouterr()
    yield started
    assert capfd.readouterr().out == ""


@pytest.fixture(scope="module")
def model():
    return qwq_ref.load("qwq-nano", threads=1)


@pytest.fixture(scope="module")
def there(model):
    return whole_elsewhere(Wishes("qwq-nano", model.path, isa=None))[1]


def prompts_and_settings(model):
    prompts = [RNG.integers(0, 300, n).tolist() for n in RNG.integers(1, 20, 60)]
    return prompts, {"end_ids": [*model.end_tokens], "vocabulary": 400, "max_tokens": 40, "seed": 5}


def where(workers):
    """The machine of the first process."""
    return workers.places[0].node.id


def test_answers_have_the_bits_of_one_process(machines, model, there):
    prompts, how = prompts_and_settings(model)
    right = answers_each(model.backend, prompts, Sampling(0.9), **how)
    with connected(machines.address) as ray, Workers(ray, functools.partial(single_thread, there)) as workers:
        assert len(workers.places) == 3
        assert answers_over(workers, prompts, Sampling(0.9), **how) == right


def test_answers_are_whole_although_a_machine_is_lost(machines, model, there):
    prompts, how = prompts_and_settings(model)
    right, lines, done = answers_each(model.backend, prompts, Sampling(0.9), **how), [], []

    def progress(count):
        done.append(count)
        if len(done) == 3:
            machines.lose(where(workers))

    make = functools.partial(single_thread, there)
    with connected(machines.address) as ray, Workers(ray, make, told=lines.append) as workers:
        assert answers_over(workers, prompts, Sampling(0.9), progress=progress, **how) == right
        assert sum(done) == len(prompts)
        assert answers_over(workers, prompts, Sampling(0.9), **how) == right  # with those that are left
        assert len(workers.places) == 2
    assert any("was lost" in line for line in lines)


def test_a_process_that_is_killed_is_started_again(machines, model, there):
    prompts, how = prompts_and_settings(model)
    right, lines = answers_each(model.backend, prompts, Sampling(0.9), **how), []
    with connected(machines.address) as ray, Workers(ray, _with_process(there), told=lines.append) as workers:
        victim = workers.map(_process, [0])[0]
        os.kill(victim, signal.SIGKILL)
        assert answers_over(workers, prompts, Sampling(0.9), **how) == right
        assert len(workers.places) == 3
    assert len(lines) == 1
    assert "was lost and is started again" in lines[0]


def _with_process(there):
    return functools.partial(single_thread, there)


def _process(model, item):
    return os.getpid()


def test_generations_have_the_bits_of_one_process(machines, model, there):
    """The mapping that suites use, with a machine lost in the middle."""
    questions = [f"What is {n}+34?" for n in range(24)]
    settings = [Settings.checked(seed=n, max_tokens=60, temperature=0.8) for n in range(24)]
    asked = [(model.prompt_ids(text), how) for text, how in zip(questions, settings, strict=True)]
    done = []

    def progress(number, said):
        done.append(number)
        if len(done) == 4:
            machines.lose(where(workers))

    with connected(machines.address) as ray, generations_over(ray, there, 3) as workers:
        found = generations(workers, asked, progress)
    for said, text, how in zip(found, questions, settings, strict=True):
        right = model.generate(text, seed=how.seed, max_tokens=60, temperature=0.8)
        assert list(said.texts.values()) == _texts(right)
        assert said.ids == right.run.output


def _texts(generation):
    for _ in generation:
        pass
    return [generation.texts[kind] for kind in ("thinking", "answer")]


def stage_machines(backend, ray):
    """The machine of each stage, in their order."""
    from ray._private.state import actors

    table = actors()
    return [table[actor._actor_id.hex()]["Address"]["NodeID"] for actor in backend._actors]


@pytest.mark.parametrize(("weights", "kv"), [("fp32", "fp32"), ("q4", "int8")])
def test_a_pipeline_has_the_bits_of_one_process(machines, weights, kv):
    whole = qwq_ref.load("qwq-nano", weights=weights, kv=kv, threads=1)
    ids = RNG.integers(0, 300, 200).tolist()
    wishes = Wishes("qwq-nano", whole.path, weights, kv)
    with connected(machines.address) as ray, pipeline(ray, wishes, 2, 4) as model:
        assert len(set(stage_machines(model.backend, ray))) == 2
        a, b = model.backend.sequence(), whole.backend.sequence()
        for some, rows in ((ids, ALL), ([5], LAST), ([6], LAST)):
            np.testing.assert_array_equal(
                model.backend.run(some, a, rows).view(np.uint32), whole.backend.run(some, b, rows).view(np.uint32)
            )
        questions = [f"What is {n}+34?" for n in range(6)]
        how = {"seed": 3, "max_tokens": 40, "temperature": 0.7}
        found = {n: answer.run.output for n, answer in model.generate_all(questions, **how)}
        assert found == {n: answer.run.output for n, answer in whole.generate_all(questions, **how)}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_pipeline_goes_on_although_the_machine_of_a_stage_is_lost(machines, stage):
    whole = qwq_ref.load("qwq-nano", weights="q8", threads=1)
    questions, lines = [f"What is {n}+34?" for n in range(4)], []
    how = {"seed": 3, "max_tokens": 60, "temperature": 0.7}
    right = {n: answer.run.output for n, answer in whole.generate_all(questions, **how)}
    wishes = Wishes("qwq-nano", whole.path, "q8")
    with connected(machines.address) as ray, pipeline(ray, wishes, 2, 4, lines.append) as model:
        steps, run, victim = [], model.backend.run_together, stage_machines(model.backend, ray)[stage]

        def counted(*arguments):
            steps.append(1)
            if len(steps) == 10:
                machines.lose(victim)
            return run(*arguments)

        model.backend.run_together = counted
        assert {n: answer.run.output for n, answer in model.generate_all(questions, **how)} == right
        assert victim not in stage_machines(model.backend, ray)
    assert [line for line in lines if line.startswith(f"stage {stage + 1} of 2 was lost and is made again")]


# --- The command line ------------------------------------------------------------------------------------------------


def qwq(*arguments, **how):
    command = [sys.executable, "-m", "qwq_ref", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **how)


def test_the_commands_on_a_cluster(machines, tmp_path):
    """Each prints on stdout what it prints without a cluster."""
    body = {"model": "qwq-nano", "temperature": 0, "max_tokens": 60}
    with open(tmp_path / "in", "w") as file:
        for n in range(9):
            messages = [{"role": "user", "content": f"What is {n}+34?"}]
            line = {"custom_id": f"r{n}", "url": "/v1/chat/completions", "body": body | {"messages": messages}}
            file.write(json.dumps(line) + "\n")

    def answers(result):
        assert result.returncode == 0, result.stderr
        bodies = [json.loads(line)["response"]["body"] for line in result.stdout.splitlines()]
        return [(each["choices"], each["usage"]) for each in bodies]

    there = ("--ray", machines.address)
    assert answers(qwq("batch", tmp_path / "in", *there)) == answers(qwq("batch", tmp_path / "in"))
    for command in (
        ("eval", "-n", "20", "--categories", "add3,minmax", "-s", "3"),
        ("generate", "What is 12+34?", "-s", "1"),
    ):
        ours, right = qwq(*command, *there), qwq(*command)
        assert ours.returncode == right.returncode == 0, ours.stderr
        assert ours.stdout == right.stdout


def marked(mark):
    """The processes whose environment has a mark: a command and all that it started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            pass
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_with_one_line(number):
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "qwq_ref", "eval", "--ray", "local", "-n", "2000", "-v"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"QWQ_TEST_MARK": mark}
    )
    for line in run.stderr:  # -v tells the machines once the actors have begun
        if line.startswith("machines: "):
            break
    time.sleep(3)
    assert len(marked(mark)) > 3
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert err.startswith("qwq: interrupted" if number == signal.SIGINT else "qwq: ended by SIGTERM")
    assert err.count("\n") == 1
    assert "raylet" not in out
    for _ in range(100):
        if not marked(mark):
            return
        time.sleep(0.2)
    raise AssertionError(f"processes are left: {marked(mark)}")


def test_an_address_where_something_else_answers():
    class Page(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    result = qwq("eval", "-n", "1", "--ray", address)
    server.shutdown()
    assert result.returncode == 1
    assert result.stderr == f"qwq: {address}: something answers there, but no Ray cluster of a version like this one\n"
    assert result.stdout == ""


def test_a_model_that_is_missing_on_a_machine(machines, model, there):
    wrong = Wishes("qwq-nano", model.path).there("q4", "int8", 100)
    wrong = type(wrong)(**{**vars(wrong), "name": "/nowhere/qwq"})
    with (
        connected(machines.address) as ray,
        Workers(ray, functools.partial(single_thread, wrong)) as workers,
        pytest.raises(ClusterError, match=r"^machine [\d.]+: .*/nowhere/qwq"),
    ):
        workers.map(_process, [0])


def test_machines_without_processors_are_left_out(machines):
    with connected(machines.address) as ray:
        assert [node.cpus for node in nodes(ray)] == [1, 1, 1]
