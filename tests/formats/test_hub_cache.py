"""Models that a user names: local paths, shipped names, and ids of the hub whose files are in the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from qwq_ref.config import Config
from qwq_ref.errors import CheckpointError, did_you_mean
from qwq_ref.formats import Checkpoint, resolve
from tests.support.hub_files import published
from tests.support.safetensors_files import INDEX, WEIGHTS, split, write

REVISION = "0123456789abcdef0123456789abcdef01234567"
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


@pytest.fixture
def cache(tmp_path):
    """-> the cache: owner/name, its main branch a sharded snapshot of links to blobs, as the hub makes it."""
    repo = tmp_path / "cache/models--owner--name"
    snapshot, blobs = repo / "snapshots" / REVISION, repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shards, weight_map = split()
    write(
        tmp_path / "saved",
        {SHARDS[shard]: weights for shard, weights in shards.items()},
        {name: SHARDS[shard] for name, shard in weight_map.items()},
    )
    for number, file in enumerate(sorted((tmp_path / "saved").iterdir())):
        file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(REVISION)
    return tmp_path / "cache"


def resolve_fails(name, words, **kwargs):
    with pytest.raises(CheckpointError) as caught:
        resolve(name, **kwargs)
    assert caught.value.file == str(name)
    assert words in caught.value.problem
    assert str(caught.value).isprintable()


def shard_of(cache):
    return sorted(cache.glob("models--owner--name/snapshots/*/model-*.safetensors"))[0]


@pytest.mark.parametrize("name", ["owner/name", "owner/name@main", f"owner/name@{REVISION}"])
def test_hub_cache(cache, name):
    folder = resolve(name, offline=True, cache_dir=cache)
    assert folder == cache / "models--owner--name/snapshots" / REVISION
    assert (folder / "config.json").is_symlink()
    with Checkpoint.open(folder) as checkpoint:
        assert all(np.array_equal(checkpoint[name], weight) for name, weight in WEIGHTS.items())


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_hub_cache_by_environment(cache, variable):
    """In a process of its own: huggingface_hub reads the environment when it is imported."""
    place = cache
    if variable == "HF_HOME":
        place = place.rename(place.parent / "hub").parent
    code = "import sys, qwq_ref.formats as c; lazy = 'huggingface_hub' not in sys.modules; "
    code += "assert lazy; print(c.resolve(sys.argv[1]))"

    def run(model):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        env = kept | {variable: str(place), "HF_HUB_OFFLINE": "1"}
        return subprocess.run([sys.executable, "-c", code, model], env=env, capture_output=True, text=True, timeout=60)

    assert run("owner/name").stdout.strip().endswith(f"/models--owner--name/snapshots/{REVISION}")
    last = run("owner/other").stderr.strip().splitlines()[-1]
    assert "CheckpointError: owner/other: is not a folder, not a file, and not complete in the Hugging Face" in last
    assert last.endswith("offline, so it was not downloaded")
    assert str(place) in last


@pytest.mark.parametrize(
    "name", ["owner/other", "owner/name@v2", "other/name", "owner/na--me", "owner/name@snapshots/x"]
)
def test_not_in_the_cache(cache, name):
    resolve_fails(name, "is not a folder, not a file, and not complete in", offline=True, cache_dir=cache)


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "owner/name/more",
        "../name",
        "owner/..",
        "owner/../name",
        "/owner/name",
        "./owner/name",
        "owner/",
        "/name",
        "~/name",
        "https://hub/owner/name",
        "owner/name@",
        "owner/na..me",
        "owner/name@../../x",
        "owner/name@main/../../../x",
        "owner/name@/etc",
        "owner/name@a@b",
        "owner\\name",
        "owner/na me",
        "owner/name\n",
        "owner/näme",
        "owner/name\0",
        "",
    ],
    ids=repr,
)
def test_not_a_hub_id(monkeypatch, name):
    def never(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", never)
    monkeypatch.setattr("huggingface_hub.HfApi", never)
    resolve_fails(name, "not a hub id")


@pytest.mark.parametrize("lost", ["a shard", "the index", "config.json"])
def test_incomplete_snapshot(cache, lost):
    """A snapshot of a tokenizer alone is not the model."""
    file = {"a shard": shard_of(cache).name, "the index": "model.safetensors.index.json"}.get(lost, lost)
    (shard_of(cache).parent / file).unlink()
    resolve_fails("owner/name", f"but without its {file}; offline", offline=True, cache_dir=cache)


def test_local_paths(cache, tmp_path, monkeypatch):
    """A folder wins over a hub id of the same name; a file needs a config.json beside it."""
    monkeypatch.chdir(tmp_path)
    local = tmp_path / "owner/name"
    local.mkdir(parents=True)
    assert resolve("owner/name", cache_dir=cache) == Path("owner/name")
    assert Config.from_file(resolve("qwq-32b") / "config.json").num_hidden_layers == 64  # shipped
    (tmp_path / "qwq-32b").mkdir()
    assert resolve("qwq-32b") == Path("qwq-32b")
    assert resolve(local) == local
    weights = local / "x.safetensors"
    weights.write_bytes(b"")
    resolve_fails(str(weights), "there is no config.json in its folder")
    (local / "config.json").write_text("{}")
    assert resolve(str(weights)) == weights
    resolve_fails(str(local / "config.json"), "is neither a folder nor a .safetensors or .gguf file")


def test_the_cache_is_judged_by_the_files_that_are_read(cache):
    """A listing that another program left names files that are not read, and that nobody fetched."""
    listing = {name: {"size": 9, "blob_id": "0" * 40} for name in ("vocab.json", "merges.txt", "trainer_state.json")}
    trees = cache / "models--owner--name/trees"
    trees.mkdir()
    (trees / f"{REVISION}.json").write_text(json.dumps({"format_version": 1, "files": listing}))
    assert resolve("owner/name", offline=True, cache_dir=cache).name == REVISION


@pytest.mark.parametrize("lost", ["a shard", INDEX, "config.json"])
def test_broken_links_are_absent(cache, lost):
    file = shard_of(cache) if lost == "a shard" else shard_of(cache).with_name(lost)
    file.resolve().unlink()
    resolve_fails("owner/name", f"but without its {file.name}; offline", offline=True, cache_dir=cache)


def test_a_config_is_enough_where_no_weights_are_read(cache):
    for file in shard_of(cache).parent.glob("*.safetensors*"):
        file.unlink()
    assert resolve("owner/name", offline=True, cache_dir=cache, weights=False).name == REVISION
    (shard_of_config := cache / f"models--owner--name/snapshots/{REVISION}/config.json").unlink()
    assert not shard_of_config.exists()
    resolve_fails("owner/name", "without its config.json", offline=True, cache_dir=cache, weights=False)


def test_packed_weights_in_the_cache(cache):
    folder = shard_of(cache).parent
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    (folder / "packed-q4.safetensors").touch()
    assert resolve("owner/name", offline=True, cache_dir=cache) == folder


# --- the folder of a repository in the cache ---


def test_the_folder_of_a_repository(cache):
    folder = cache / "models--owner--name"
    assert resolve(folder) == folder / "snapshots" / REVISION
    (folder / "refs/main").unlink()
    assert resolve(str(folder)) == folder / "snapshots" / REVISION  # the only one
    (folder / "snapshots/fedcba9876543210fedcba9876543210fedcba98").mkdir()
    with pytest.raises(CheckpointError, match="is the cache of a repository: give a snapshot, such as snapshots/"):
        Checkpoint.open(resolve(folder))
    (folder / "refs/main").write_text(REVISION)
    shard_of(cache).unlink()
    words = "is the cache of a repository, without its model-00001-of-00002.safetensors: give the id owner/name"
    resolve_fails(folder, words)
    with pytest.raises(CheckpointError, match="is the Hugging Face cache: give an id, such as owner/name"):
        Checkpoint.open(resolve(cache))


@pytest.mark.parametrize("kind", ["datasets", "spaces"])
def test_the_folder_of_another_repository(cache, kind):
    folder = (cache / "models--owner--name").rename(cache / f"{kind}--owner--name")
    resolve_fails(folder, "is the cache of a data set or a space, not of a model")


@pytest.mark.parametrize("main", ["../..", "..", "", "/etc", "snapshots", "\0", "x" * 5000])
def test_a_reference_that_leaves_the_cache(cache, main):
    (cache / "models--owner--name/refs/main").write_text(main)
    resolve_fails("owner/name", "not complete in", offline=True, cache_dir=cache)


# --- snapshots without a branch: another program fetched a commit by its name ---


def test_the_only_snapshot_is_taken_offline(cache):
    repo = cache / "models--owner--name"
    (repo / "refs/main").unlink()
    assert resolve("owner/name", offline=True, cache_dir=cache) == repo / "snapshots" / REVISION
    (repo / "refs").rmdir()
    assert resolve("owner/name", offline=True, cache_dir=cache) == repo / "snapshots" / REVISION
    resolve_fails("owner/name@main", "not complete in", offline=True, cache_dir=cache)
    resolve_fails("owner/name@v1", "not complete in", offline=True, cache_dir=cache)
    shard_of(cache).unlink()
    resolve_fails("owner/name", f"but without its {SHARDS['a']}; offline", offline=True, cache_dir=cache)


def test_one_of_several_snapshots_needs_its_name(cache):
    repo = cache / "models--owner--name"
    (repo / "refs/main").unlink()
    other = repo / "snapshots" / REVISION[::-1]
    (repo / "snapshots" / REVISION).rename(other)
    other.with_name(REVISION).mkdir()
    names = f"owner/name@{REVISION} or owner/name@{REVISION[::-1]}"
    resolve_fails("owner/name", f"2 snapshots, and none is main: name one, {names}", offline=True, cache_dir=cache)
    assert resolve(f"owner/name@{REVISION[::-1]}", offline=True, cache_dir=cache) == other


def test_online_a_snapshot_without_a_branch_is_not_taken_for_main(local_hub, tmp_path):
    files = published()
    commit = local_hub.add("owner/name", files, branch="old")
    resolve(f"owner/name@{commit}")
    newer = local_hub.add("owner/name", files | {"chat_template.jinja": b"{{ messages }}"})
    assert resolve("owner/name", offline=True).name == commit
    assert resolve("owner/name").name == newer


def test_shards_without_their_index_say_so(cache):
    (cache / "models--owner--name/snapshots" / REVISION / INDEX).unlink()
    resolve_fails("owner/name", f"but without its {INDEX}; offline", offline=True, cache_dir=cache)


def test_an_index_that_is_missing_is_fetched(local_hub):
    local_hub.add("owner/name", published())
    folder = resolve("owner/name")
    (folder / INDEX).unlink()
    local_hub.log.clear()
    assert resolve("owner/name") == folder
    assert (folder / INDEX).exists()
    assert local_hub.asked("GET", "/model-") == []


# --- names that are nearly right ---


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("qwq-nan", "qwq-nano"),
        ("qwqnano", "qwq-nano"),
        ("QwQ-32B", "qwq-32b"),
        ("qwq_nano_base", "qwq-nano-base"),
        ("name", "owner/name"),
        ("owner/nam", "owner/name"),
        ("https://huggingface.co/Qwen/QwQ-32B", "Qwen/QwQ-32B"),
        ("hf.co/Qwen/QwQ-32B/tree/main", "Qwen/QwQ-32B"),
        ("hf://Qwen/QwQ-32B", "Qwen/QwQ-32B"),
        ("Qwen/QwQ-32B/", "Qwen/QwQ-32B"),
        ("hf.co/Qwen/QwQ-32B-GGUF:Q4_K_M", "Qwen/QwQ-32B-GGUF:Q4_K_M"),
    ],
)
def test_did_you_mean(cache, monkeypatch, name, meant):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    resolve_fails(name, f"(did you mean {meant}", offline=True)


def test_a_tilde_that_no_shell_replaced(cache):
    resolve_fails("~/name", "The shell did not replace the ~")


@pytest.mark.parametrize("offline", [True, False])
def test_the_name_itself_is_not_meant(local_hub, offline):
    """A folder of the cache without a snapshot has the name that was asked for."""
    cache = Path(constants.HF_HUB_CACHE)
    for name in ("models--owner--name", "models--owner--names"):
        (cache / name / "refs").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        resolve("owner/name", offline=offline)
    assert "(did you mean owner/names?)" in caught.value.problem
    assert did_you_mean("owner/name", ["owner/name"]) == ""
