"""A run of reinforcement learning: its reward, its problems, its folder, and a miniature that must improve."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from qwq_ref import tasks
from qwq_ref.cli import main
from qwq_ref.errors import CheckpointError, NonFiniteError, UsageError
from qwq_ref.formats import Checkpoint
from qwq_ref.text import load_tokenizer
from qwq_ref.train import ppo, rl
from qwq_ref.train.corpus import RL_SHARES, Formatter
from qwq_ref.train.environment import Exercises
from qwq_ref.train.folder import saved_step
from qwq_ref.train.reward import PARTS, Reward
from qwq_ref.train.rollout import Answer
from tests.support.paths import PACKAGE

NANO, BASE = PACKAGE / "models" / "qwq-nano", PACKAGE / "models" / "qwq-nano-base"
SMALL = rl.Recipe(
    replace(ppo.Settings(), iterations=3, prompts=8, minibatch=4, warmup=1), shares={"compare": 1}, max_tokens=60
)


@pytest.fixture(scope="module")
def formatter():
    return Formatter(load_tokenizer(NANO))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    rl.train(folder, NANO, SMALL, seed=3)
    return folder


def arrays(folder):
    with np.load(folder / "state.npz") as state:
        return {name: state[name] for name in state}


# --- reward ----------------------------------------------------------------------------------------------------------


def judged(formatter, text, ended=True, limit=100, language="en"):
    problem = tasks.sample("add3", np.random.default_rng(4), "train", language)
    ids = formatter.tokenizer.encode(text, special=True)
    return Reward().parts(problem, ids, text, ended, limit), problem


RIGHT = "So 1841\n</think>\n\nThe answer is \\boxed{1841}."


def test_a_right_answer_gets_all_that_is_positive(formatter):
    parts, problem = judged(formatter, RIGHT)
    assert problem.answer == "1841"
    assert tuple(parts) == PARTS
    assert parts == dict.fromkeys(PARTS, 0) | {"correct": 1, "format": 0.1, "language": 0.1}


@pytest.mark.parametrize(
    ("text", "ended", "wanted"),
    [
        (RIGHT, False, {"correct": 0, "format": 0, "truncated": -0.2}),
        (RIGHT.replace("</think>", "</think></think>"), True, {"correct": 0, "format": 0}),
        (RIGHT.replace("</think>", ""), True, {"correct": 0, "format": 0}),
        (RIGHT.replace("{1841}", "{1842}"), True, {"correct": 0, "format": 0.1}),
        (RIGHT.replace("So", "所以"), True, {"correct": 1, "language": 0}),
    ],
)
def test_each_fault_costs_its_part(formatter, text, ended, wanted):
    parts, _ = judged(formatter, text, ended)
    assert {name: parts[name] for name in wanted} == wanted


def test_repetition_and_length_cost_by_degrees(formatter):
    again = "9+8+1=18,841\n" * 8 + RIGHT
    parts, _ = judged(formatter, again, limit=1000)
    assert -0.2 < parts["repetition"] < -0.1
    assert parts["long"] == 0
    count = len(formatter.tokenizer.encode(RIGHT, special=True))
    assert judged(formatter, RIGHT, limit=count)[0]["long"] == pytest.approx(-0.1)
    assert judged(formatter, RIGHT, limit=round(count / 0.875))[0]["long"] == pytest.approx(-0.05, abs=0.01)


def test_a_part_of_zero_is_left_out(formatter):
    problem = tasks.sample("add3", np.random.default_rng(4), "train", "en")
    found = Reward(language=0, repetition=0).parts(problem, [5] * 60, "所以" * 9, True, 100)
    assert found["language"] == found["repetition"] == 0


# --- problems --------------------------------------------------------------------------------------------------------


def test_questions_are_of_the_training_split_in_their_shares(formatter):
    world = Exercises(formatter, 512, {"gcd": 3, "add3": 1}, Reward(), 160)
    drawn = world.draw(np.random.default_rng(0), 400)
    assert {tasks.split(problem) for problem, _ in drawn} == {"train"}
    assert sum(problem.category == "gcd" for problem, _ in drawn) == pytest.approx(300, abs=40)
    assert {problem.category for problem, _ in drawn} == {"gcd", "add3"}
    problem, prompt = drawn[0]
    assert prompt == formatter.prompt(problem.prompt)


def test_default_shares_ask_the_worst_categories_most():
    assert set(RL_SHARES) == set(tasks.CATEGORIES + tasks.FURTHER)
    total = sum(RL_SHARES.values())
    assert sum(RL_SHARES[name] for name in ("countdown3", "gcd", "recall", "mod", "sort")) > total / 2


def test_ids_without_text_are_never_chosen(formatter):
    world = Exercises(formatter, 520, {"gcd": 1}, Reward(), 160)
    assert not world.allowed[formatter.tokenizer.size :].any()
    for hole in formatter.tokenizer.holes:
        assert not world.allowed[hole.start : hole.stop].any()
    assert world.parts(world.draw(np.random.default_rng(0), 1)[0][0], Answer([], False))["truncated"] == -0.2


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_a_state_and_a_log(whole):
    with open(whole / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) == set(rl.COLUMNS)
    for row in rows:
        assert float(row["reward"]) == pytest.approx(sum(float(row[name]) for name in PARTS), abs=1e-4)
        assert float(row["sampler_gap"]) < 1e-3
    assert (
        float(rows[0]["kl"]) == float(rows[1]["kl"]) == 0 != float(rows[2]["kl"])
    )  # the first taught the values alone
    recipe = json.loads((whole / "recipe.json").read_text())
    assert (recipe["stage"], recipe["seed"], recipe["shares"]) == ("rl", 3, {"compare": 1})
    with Checkpoint.open(whole) as ours, Checkpoint.open(NANO) as theirs:
        assert 0 < np.abs(ours["lm_head.weight"] - theirs["lm_head.weight"]).max() < 0.05
    assert saved_step(whole, "iteration") == 3


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_bits(whole, tmp_path, stop):
    def interrupt(done, total, measured):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl.train(tmp_path, NANO, SMALL, seed=3, progress=interrupt)
    assert saved_step(tmp_path, "iteration") == stop
    rl.train(tmp_path, NANO, SMALL, seed=3)
    mine, theirs = arrays(tmp_path), arrays(whole)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert np.array_equal(array, theirs[name]), name
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    def facts(folder):
        with open(folder / "log.csv") as file:
            return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]

    assert facts(tmp_path) == facts(whole)


def test_an_interruption_within_an_iteration_keeps_the_one_before(whole, tmp_path, monkeypatch):
    improve, calls = ppo.improve, []

    def interrupted(*args, **how):
        calls.append(improve(*args, **how))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "improve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rl.train(tmp_path, NANO, SMALL, seed=3)
    assert saved_step(tmp_path, "iteration") == 1
    rl.train(tmp_path, NANO, SMALL, seed=3)
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    improve, calls = ppo.improve, []

    def breaks(config, weights, *args, **how):
        calls.append(1)
        if len(calls) == 2:
            weights["lm_head.weight"][0] = np.nan
        return improve(config, weights, *args, **how) if len(calls) == 1 else dict.fromkeys(rl.MEASURES, 0.0)

    monkeypatch.setattr(ppo, "improve", breaks)
    with pytest.raises(NonFiniteError, match="iteration 2"):
        rl.train(tmp_path, NANO, SMALL, seed=3)
    assert saved_step(tmp_path, "iteration") == 1
    assert all(np.isfinite(array).all() for array in arrays(tmp_path).values())


def test_another_recipe_needs_another_folder(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    for changed, field in (
        (replace(SMALL, max_tokens=61), "max_tokens"),
        (replace(SMALL, settings=replace(SMALL.settings, kl=1.0)), "settings"),
        (replace(SMALL, reward=Reward(format=0)), "reward"),
    ):
        with pytest.raises(UsageError, match=f"{field}: is .* choose another folder"):
            rl.train(folder, NANO, changed, seed=3)
    (folder / "state.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is damaged"):
        rl.train(folder, NANO, SMALL, seed=3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--model: names the model to start from"),
        (["-m", str(NANO), "--group", "3"], "--group: 3 does not divide the 512 answers"),
        (["-m", str(NANO), "--advantages", "group", "--group", "1"], "--group: must be at least 2"),
        (["-m", str(NANO), "--categories", "gdc"], "--categories: there is no 'gdc'"),
        (["-m", str(NANO), "--categories", "gcd:0"], "--categories: the shares must be positive"),
        (["-m", str(NANO), "--categories", "gcd:1,gcd"], "--categories: names 'gcd' twice"),
        (["-m", str(NANO), "--reward", "corect:1"], "--reward: there is no part 'corect' (did you mean correct?)"),
        (["-m", str(NANO), "--checkpointing", "full"], "--checkpointing: has no effect in rl"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(tmp_path, capsys, words, line):
    assert main(["train", "rl", "-o", str(tmp_path / "x"), *words]) == 2
    assert line in (told := capsys.readouterr().err)
    assert told.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_options_of_rl_are_refused_elsewhere(tmp_path, capsys):
    assert main(["train", "cold-start", "-m", str(BASE), "-o", str(tmp_path / "x"), "--kl", "0.1"]) == 2
    assert "--kl: is of rl alone" in capsys.readouterr().err


def test_the_command_line_tells_how_it_goes(tmp_path, capsys):
    how = {"steps": 1, "prompts": 8, "advantages": "group", "group": 4, "categories": "compare", "max-tokens": 60}
    words = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    assert main(["train", "rl", "-m", str(NANO), "-o", str(tmp_path / "x"), *words]) == 0
    assert "iteration 1 of 1: reward " in (told := capsys.readouterr().err)
    assert ", correct " in told
    assert ", length " in told
    assert ", kl " in told
    recipe = json.loads((tmp_path / "x" / "recipe.json").read_text())
    assert recipe["settings"]["advantages"] == "group"
    assert recipe["shares"] == {"compare": 1}


# --- it learns -------------------------------------------------------------------------------------------------------


def rewards(folder, iterations, prompts, category):
    """The reward of each iteration from the base model, whose answers often run in a loop."""
    settings = ppo.Settings(
        advantages="group", group=8, iterations=iterations, prompts=prompts, rate=6e-4, kl=0.0, epochs=1, warmup=0
    )
    found = []
    recipe = rl.Recipe(settings, shares={category: 1}, max_tokens=120)
    rl.train(folder, BASE, recipe, workers=2, progress=lambda done, total, all: found.append(all["reward"]))
    return found


def test_a_miniature_improves_its_reward(tmp_path):
    """Half a minute on two quiet cores."""
    found = rewards(tmp_path, 9, 96, "compare")
    assert np.mean(found[-3:]) > np.mean(found[:3]) + 0.05


@pytest.mark.long
def test_a_longer_run_improves_its_reward_more(tmp_path):
    """Five minutes."""
    found = rewards(tmp_path, 30, 384, "count")
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.15
