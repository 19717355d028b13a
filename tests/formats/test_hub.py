"""Downloads from a hub on this machine: what is fetched, what is asked before, and what the cache holds then."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwq_ref.errors import CheckpointError, ConfigError
from qwq_ref.formats import Checkpoint, GenerationConfig, resolve
from qwq_ref.host import disk
from tests.support.hub_files import SHARDS, SMALL, UNREAD, held, published
from tests.support.hub_server import LARGE, environment
from tests.support.safetensors_files import INDEX, VALUES, WEIGHTS


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@refs/pr/3", "@commit"])
def test_download(local_hub, tmp_path, sharded, revision):
    files = published(sharded)
    commit = local_hub.add("owner/name", files, branch=revision.removeprefix("@") or "main")
    name = "owner/name" + revision.replace("commit", commit)
    folder = resolve(name)
    assert folder == tmp_path / "hub/models--owner--name/snapshots" / commit
    assert held(folder) == set(files) - set(UNREAD)
    with Checkpoint.open(folder) as checkpoint:
        assert all(np.array_equal(checkpoint[name], weight) for name, weight in WEIGHTS.items())
    local_hub.log.clear()
    assert resolve(name) == resolve(name, offline=True) == folder
    assert local_hub.asked() == []  # what is complete is not asked for again


def test_what_is_asked_before(local_hub, tmp_path):
    files, plans = published(), []

    def confirm(plan):
        assert not list((tmp_path / "hub").rglob("model-*.safetensors"))
        plans.append(plan)
        return True

    local_hub.add("owner/name", files)
    resolve("owner/name@main", confirm=confirm)
    (plan,) = plans
    read = set(files) - set(UNREAD)
    assert plan.files == {name: len(files[name]) for name in read}
    assert set(plan.absent) == read - {"config.json", INDEX}
    assert plan.nbytes == sum(len(files[name]) for name in plan.absent)
    assert (plan.name, plan.cache, plan.config.V) == ("owner/name@main", tmp_path / "hub", VALUES["vocab_size"])
    resolve("owner/name@main", confirm=lambda plan: pytest.fail("nothing is to be downloaded"))


def test_a_refusal_fetches_no_weights(local_hub, tmp_path):
    local_hub.add("owner/name", published())
    with pytest.raises(CheckpointError, match=r"^owner/name: was not downloaded \([\d.]+ KiB\)"):
        resolve("owner/name", confirm=lambda plan: False)
    assert local_hub.asked("GET", "/model-") == []
    assert not list(tmp_path.rglob("*.incomplete"))


def test_bytes_are_reported(local_hub):
    files, told = published(), []
    local_hub.add("owner/name", files)
    resolve("owner/name", progress=told.append)
    assert sum(told) == sum(len(data) for name, data in files.items() if name not in UNREAD)


def test_a_config_alone(local_hub):
    """`qwq info` of a model needs 1 KB, and not 60 GB."""
    local_hub.add("owner/name", published())
    folder = resolve("owner/name", weights=False, confirm=lambda plan: pytest.fail("asked"))
    assert held(folder) == {"config.json"}
    assert resolve("owner/name", weights=False, offline=True) == folder


def test_a_disk_without_room(local_hub, monkeypatch):
    files = published()
    local_hub.add("owner/name", files)
    needed = sum(len(files[name]) for name in set(files) - set(UNREAD) - {"config.json", INDEX})
    monkeypatch.setattr(disk, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(CheckpointError) as caught:
        resolve("owner/name", confirm=lambda plan: pytest.fail("asked in vain"))
    assert "KiB on the disk of" in caught.value.problem
    assert "KiB left; HF_HOME names a folder on another disk" in caught.value.problem
    assert local_hub.asked("GET", "/model-") == []
    monkeypatch.setattr(disk, "free_bytes", lambda folder: needed)
    resolve("owner/name")


def test_only_what_is_not_in_the_cache_is_counted(local_hub):
    """A new commit that changes one file: the blobs of the others are linked."""
    files = published()
    local_hub.add("owner/name", files)
    old = resolve("owner/name")
    changed = files | {SHARDS["b"]: files[SHARDS["b"]], "tokenizer_config.json": b'{"model_max_length": 9}'}
    commit = local_hub.add("owner/name", changed)
    plans = []
    folder = resolve(f"owner/name@{commit}", confirm=lambda plan: not plans.append(plan))
    assert plans == []  # no weights are to be fetched, so nobody is asked
    assert local_hub.asked("GET", local_hub.store) == []
    assert (folder / SHARDS["b"]).resolve() == (old / SHARDS["b"]).resolve()
    assert held(folder) == held(old)


def test_a_branch_that_moves_during_the_download(local_hub, monkeypatch):
    """The files are of one commit: that of the config."""
    local_hub.add("owner/name", published())
    answer = type(local_hub).info

    def moving(self, request, repo, revision):
        answer(self, request, repo, revision)
        if revision == "main" and len(self.repos[repo]) == 2:
            self.add(repo, published(sharded=False))

    monkeypatch.setattr(type(local_hub), "info", moving)
    folder = resolve("owner/name")
    assert "model.safetensors" in held(folder)
    assert INDEX not in held(folder)


# --- small files ---


@pytest.mark.parametrize("lost", sorted(SMALL))
def test_small_files_that_another_program_left_out(local_hub, lost):
    files = published()
    local_hub.add("owner/name", files)
    folder = resolve("owner/name")
    (folder / lost).unlink()
    assert resolve("owner/name", offline=True) == folder
    assert lost not in held(folder)
    assert resolve("owner/name") == folder
    assert (folder / lost).read_bytes() == files[lost]


def test_small_files_that_the_hub_lacks_are_asked_for_once(local_hub):
    local_hub.add("owner/name", published(small={}))
    folder = resolve("owner/name")
    commit = folder.name
    (folder.parents[1] / ".no_exist" / commit / "generation_config.json").unlink()
    local_hub.log.clear()
    resolve("owner/name")
    assert len(local_hub.asked()) == 1
    resolve("owner/name")
    assert len(local_hub.asked()) == 1


@pytest.mark.parametrize("kind", ["status", "hang", "page", "loop", "cut"])
def test_a_complete_model_needs_no_hub(local_hub, kind, monkeypatch):
    from qwq_ref.formats.hub import download

    local_hub.add("owner/name", published())
    folder = resolve("owner/name")
    (folder / "generation_config.json").unlink()
    monkeypatch.setattr(download, "_SMALL_SECONDS", 0.2)
    local_hub.fault("hub:", kind, 503)
    assert resolve("owner/name") == folder


def test_templates_of_several_names(local_hub):
    more = {"additional_chat_templates/tool_use.jinja": "x", "additional_chat_templates/../../evil.jinja": "x"}
    local_hub.add("owner/name", published(small=SMALL | more))
    assert "additional_chat_templates/tool_use.jinja" in held(folder := resolve("owner/name"))
    assert not list(folder.parents[3].rglob("evil*"))


# --- repositories that hold something else ---


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"mmproj.gguf": b""}, "GGUF files of llama.cpp (mmproj.gguf)"),
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}'},
            "a LoRA adapter of Qwen/Qwen2.5",
        ),
        ({"config.json": VALUES, "pytorch_model.bin": b""}, "weights of PyTorch"),
        ({"config.json": VALUES | {"quantization_config": {"quant_method": "aqlm"}}, "model.safetensors": b""}, "AQLM"),
        ({"model_index.json": b"{}"}, "a pipeline of Diffusers"),
        ({"README.md": b""}, "holds no model"),
        ({}, "is empty"),
        ({"config.json": VALUES, INDEX: {"weight_map": {"x": "lost.safetensors"}}}, "which the hub does not have"),
    ],
)
def test_repositories_of_other_things(local_hub, files, words):
    local_hub.add("owner/name", {n: d if isinstance(d, bytes) else json.dumps(d).encode() for n, d in files.items()})
    with pytest.raises(CheckpointError) as caught:
        resolve("owner/name")
    assert caught.value.file == "owner/name"
    assert words in str(caught.value)
    assert local_hub.asked("GET", "safetensors") == local_hub.asked("GET", INDEX)


def test_another_architecture_is_refused_before_its_weights(local_hub):
    local_hub.add("owner/name", published(config=VALUES | {"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"^owner/name: config\.json: model_type"):
        resolve("owner/name")
    assert local_hub.asked("GET", "model-") == []


def test_packed_weights_of_the_hub(local_hub):
    local_hub.add("owner/name", {"config.json": json.dumps(VALUES).encode(), "packed-q4.safetensors": b"x" * 2 * LARGE})
    assert "packed-q4.safetensors" in held(resolve("owner/name"))


def test_in_a_process_of_its_own(hub, tmp_path):
    """HF_ENDPOINT and HF_HOME; the hub's library is not imported where the cache is enough."""
    hub.add("owner/name", published())
    code = "import sys, qwq_ref.formats as f; print(f.resolve('owner/name')); "
    code += "print('huggingface_hub.hf_api' in sys.modules)"
    for fetched in (True, False):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        folder, imported = done.stdout.splitlines()
        assert Path(folder).is_relative_to(tmp_path / "hub/models--owner--name")
        assert (imported == "True") is fetched


def test_the_sampling_of_a_fetched_generation_config(local_hub):
    local_hub.add("owner/name", published())
    with Checkpoint.open(resolve("owner/name")) as checkpoint:
        assert checkpoint.generation_config() == GenerationConfig(
            (0,), do_sample=True, temperature=0.6, top_k=40, top_p=0.95
        )
