"""GGUF models of the hub: which one a name means, what is fetched, and what is known before."""

import json

import pytest

from qwq_ref.errors import CheckpointError, ChoiceError, ConfigError
from qwq_ref.formats import GGUFSource, open_source, read_config, resolve
from qwq_ref.host import disk
from tests.support.hub_files import SMALL, held, published
from tests.support.hub_gguf import CONFIG, TYPES, in_shards, model, repository
from tests.support.hub_server import LARGE

pytest.importorskip("gguf")
NAME = "owner/name"


def fetched(hub):
    """The names of the files that were downloaded, or begun."""
    return {path.rpartition("/")[2] for path in hub.asked("GET", "/resolve/")}


# --- the model that a name means ---


def test_the_only_model(local_hub, tmp_path):
    commit = local_hub.add(NAME, repository(["q4_k_m"]))
    path = resolve(NAME)
    assert path == tmp_path / "hub/models--owner--name/snapshots" / commit / "m-q4_k_m.gguf"
    assert path.read_bytes() == model("q4_k_m")[0]
    assert held(path.parent) == {path.name}
    local_hub.log.clear()
    assert resolve(NAME) == resolve(NAME, offline=True) == resolve(f"{NAME}:Q4_K_M") == path
    assert local_hub.asked() == []


@pytest.mark.parametrize(
    "name", ["{}:Q4_K_M", "{}:q4_k_m", "{}/m-q4_k_m.gguf", "{}@main:q4_K_m", "{}@main/m-q4_k_m.gguf"]
)
def test_one_of_several(local_hub, name):
    local_hub.add(NAME, repository())
    name = name.format(NAME)
    path = resolve(name)
    assert path.read_bytes() == model("q4_k_m")[0]
    assert fetched(local_hub) == {"m-q4_k_m.gguf"}
    local_hub.log.clear()
    assert resolve(name) == resolve(name, offline=True) == path
    assert local_hub.asked() == []


def test_several_are_listed(local_hub):
    local_hub.add(NAME, repository())
    with pytest.raises(ChoiceError) as caught:
        resolve(NAME)
    problem = caught.value
    assert str(problem) == (
        "owner/name: holds 3 GGUF models: name one, such as owner/name:Q4_K_M; there are Q2_K, Q4_K_M, Q8_0"
    )
    assert [(offer.spelled, offer.nbytes) for offer in problem.offers] == [
        (f"owner/name:{kind.upper()}", len(model(kind)[0])) for kind in TYPES
    ]
    assert problem.config == CONFIG
    assert not list(local_hub.asked("GET", "q8_0"))


def test_without_a_connection_those_in_the_cache_are_listed(local_hub):
    local_hub.add(NAME, repository())
    first = resolve(f"{NAME}:q2_k")
    assert resolve(NAME) == resolve(NAME, offline=True) == first  # the only one in the cache
    resolve(f"{NAME}:q8_0")
    with pytest.raises(ChoiceError, match=r"holds 2 GGUF models in the cache: name one, .* there are Q2_K, Q8_0"):
        resolve(NAME, offline=True)
    with pytest.raises(ChoiceError, match="holds 3 GGUF models: "):
        resolve(NAME)
    with pytest.raises(CheckpointError, match=r"q4_k_m: is in .*, but without its GGUF model q4_k_m; offline"):
        resolve(f"{NAME}:q4_k_m", offline=True)


@pytest.mark.parametrize(
    ("files", "wanted", "found"),
    [
        (["QwQ-32B-Q4_K_M.gguf", "QwQ-32B-Q4_K_S.gguf"], "Q4_K_M", "QwQ-32B-Q4_K_M.gguf"),
        (["Qwen_QwQ-32B-Q4_K_L.gguf", "Qwen_QwQ-32B-Q4_0.gguf"], "q4_k_l", "Qwen_QwQ-32B-Q4_K_L.gguf"),
        (["QwQ-32B-UD-Q4_K_XL.gguf", "QwQ-32B-Q4_K_M.gguf"], "UD-Q4_K_XL", "QwQ-32B-UD-Q4_K_XL.gguf"),
        (["QwQ-32B-UD-Q4_K_XL.gguf", "QwQ-32B-Q4_K_M.gguf"], "q4_k_xl", "QwQ-32B-UD-Q4_K_XL.gguf"),
        (["QwQ-32B-UD-Q4_K_M.gguf", "QwQ-32B-Q4_K_M.gguf"], "q4_k_m", "QwQ-32B-Q4_K_M.gguf"),
        (["x-iq4_xs.gguf", "x-iq4_nl.gguf"], "IQ4_XS", "x-iq4_xs.gguf"),
        (["x.Q8_0.gguf", "x.f16.gguf"], "F16", "x.f16.gguf"),
        (["x-fp16.gguf", "x-q8_0.gguf"], "f16", "x-fp16.gguf"),
        (["x-f16.gguf", "x-bf16.gguf"], "f16", "x-f16.gguf"),
        (["q4-folder/x-q8_0.gguf", "x-q2_k.gguf"], "q8_0", "q4-folder/x-q8_0.gguf"),
        (["small.gguf", "large.gguf"], "large", "large.gguf"),
    ],
)
def test_types(local_hub, files, wanted, found):
    contents = dict.fromkeys(files, b"other" * LARGE) | {found: model()[0]}
    local_hub.add(NAME, contents)
    assert str(resolve(f"{NAME}:{wanted}")).endswith(f"/{found}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (":q5_0", "holds no GGUF model q5_0; there are Q2_K, Q4_K_M, Q8_0"),
        (":q4_k_", "holds no GGUF model q4_k_; there are"),
        ("/m-q5_0.gguf", r"holds no file m-q5_0\.gguf; there are Q2_K"),
        ("/README.gguf", "holds no file README"),
        ("/mmproj-F16.gguf", "holds no file mmproj"),
    ],
)
def test_a_model_that_is_not_there(local_hub, name, words):
    local_hub.add(NAME, repository())
    with pytest.raises(ChoiceError, match=f"^{NAME}{name}: {words}"):
        resolve(NAME + name)


def test_two_files_of_one_type(local_hub):
    local_hub.add(
        NAME, {"a-q4_k_m.gguf": model()[0], "b-q4_k_m.gguf": model(seed=1)[0], "c-q2_k.gguf": model("q2_k")[0]}
    )
    with pytest.raises(ChoiceError) as caught:
        resolve(f"{NAME}:q4_k_m")
    assert [offer.spelled for offer in caught.value.offers] == [f"{NAME}/a-q4_k_m.gguf", f"{NAME}/b-q4_k_m.gguf"]
    assert resolve(f"{NAME}/b-q4_k_m.gguf").read_bytes() == model(seed=1)[0]


def test_a_checkpoint_comes_first(local_hub):
    local_hub.add(NAME, published(unread=()) | repository())
    assert resolve(NAME).is_dir()
    assert not any(name.endswith(".gguf") for name in fetched(local_hub))
    path = resolve(f"{NAME}:q4_k_m")
    assert path.suffix == ".gguf"
    assert resolve(NAME) == path.parent  # and still does
    local_hub.add("owner/other", published(unread=()))
    with pytest.raises(ChoiceError, match="holds no GGUF model q4_k_m"):
        resolve("owner/other:q4_k_m")


def test_small_files_of_a_repository_are_not_fetched(local_hub):
    """The file itself holds all that they say; some repositories have a config.json for other programs."""
    more = {"config.json": json.dumps({"model_type": "qwen2"}).encode(), "params": b"{}"}
    local_hub.add(NAME, repository(["q4_k_m"]) | more | dict.fromkeys(SMALL, b"{}"))
    assert held(resolve(NAME).parent) == {"m-q4_k_m.gguf"}


# --- shards ---


@pytest.mark.parametrize("stem", ["m-bf16", "BF16/m-bf16", "m-bf16/m-bf16"])
@pytest.mark.parametrize("name", [":bf16", "/{}-00001-of-00002.gguf", "/{}-00002-of-00002.gguf"])
def test_shards_are_one_model(local_hub, stem, name):
    local_hub.add(NAME, repository() | in_shards(stem))
    path = resolve(NAME + name.format(stem))
    assert str(path).endswith(f"/{stem}-00001-of-00002.gguf")
    with open_source(path) as source:
        assert source.config == CONFIG
    assert fetched(local_hub) == {f"m-bf16-0000{i}-of-00002.gguf" for i in (1, 2)}
    local_hub.log.clear()
    assert resolve(NAME + name.format(stem), offline=True) == path


@pytest.mark.parametrize("of_hub", [True, False], ids=["digests", "no digests"])
def test_a_model_twice_is_one(local_hub, of_hub):
    """Under two spellings, and in two places: large repositories ship such."""
    local_hub.sizes = of_hub
    local_hub.add(NAME, in_shards("BF16/m.BF16") | in_shards("BF16/m-BF16") | (in_shards("m-bf16") if of_hub else {}))
    assert resolve(NAME).name in ("m-BF16-00001-of-00002.gguf", "m.BF16-00001-of-00002.gguf")
    assert len([name for name in fetched(local_hub) if name.endswith(".gguf")]) == 2


def test_a_shard_that_the_hub_lacks(local_hub):
    files = in_shards("m-bf16")
    del files["m-bf16-00002-of-00002.gguf"]
    local_hub.add(NAME, repository(["q2_k"]) | files)
    assert resolve(NAME).name == "m-q2_k.gguf"
    for name in ("/m-bf16-00001-of-00002.gguf", ":bf16"):
        with pytest.raises(CheckpointError, match=r"00001-of-00002\.gguf is one of 2 shards, of which the hub has 1"):
            resolve(NAME + name)


def test_an_incomplete_model_in_the_cache_is_fetched_again(local_hub):
    local_hub.add(NAME, in_shards("m-bf16"))
    path = resolve(NAME)
    path.with_name("m-bf16-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="but without its GGUF model; offline"):
        resolve(NAME, offline=True)
    assert resolve(NAME) == path
    assert path.with_name("m-bf16-00002-of-00002.gguf").exists()


# --- before the download ---


def test_what_is_known_before(local_hub, tmp_path):
    local_hub.add(NAME, repository(["q4_k_m"]))
    plans, small = [], []

    def confirm(plan):
        assert not list((tmp_path / "hub").rglob("*.gguf"))
        plans.append(plan)
        return True

    def inspect(path):
        assert not list((tmp_path / "hub").rglob("*.gguf"))
        with GGUFSource.open(path) as source:
            small.append(source.config)

    path = resolve(NAME, confirm=confirm, inspect=inspect)
    (plan,), size = plans, len(model()[0])
    assert (plan.files, plan.absent, plan.nbytes) == ({"m-q4_k_m.gguf": size}, ("m-q4_k_m.gguf",), size)
    assert (plan.name, plan.cache, plan.config, plan.quantised) == (NAME, tmp_path / "hub", CONFIG, True)
    with open_source(path) as source:
        assert plan.dtypes == source.dtypes
        assert plan.kept.formats == source.kept.form.formats
    assert small == [CONFIG]
    resolve(NAME, confirm=lambda plan: pytest.fail("nothing is to be downloaded"))


def test_only_the_header_is_fetched_before(local_hub, monkeypatch):
    """By a range, and by the end of the connection where the server honours no ranges."""
    from qwq_ref.formats.hub import heads

    monkeypatch.setattr(heads, "FIRST", 30_000)
    local_hub.add(NAME, repository(["q8_0"]))
    for ranges in (True, False):
        local_hub.ranges = ranges
        local_hub.log.clear()
        heads.forget()
        assert read_config(resolve(NAME, weights=False)) == CONFIG
        asked = [each for _, path, each in local_hub.log if path.startswith("/") and each]
        assert set(asked) == {"bytes=0-29999"}


def test_a_header_longer_than_the_first_request(local_hub, monkeypatch):
    from qwq_ref.formats.hub import heads

    monkeypatch.setattr(heads, "FIRST", 200)
    local_hub.add(NAME, repository(["q8_0"]))
    assert read_config(resolve(NAME, weights=False)) == CONFIG


def test_a_refusal_fetches_nothing(local_hub, tmp_path):
    local_hub.add(NAME, repository())
    with pytest.raises(CheckpointError, match=r"^owner/name:Q8_0: was not downloaded \([\d.]+ [KM]iB\)"):
        resolve(f"{NAME}:Q8_0", confirm=lambda plan: False)
    assert not list((tmp_path / "hub").rglob("*.gguf"))


def test_a_disk_without_room(local_hub, monkeypatch):
    local_hub.add(NAME, in_shards("m-bf16"))
    needed = sum(map(len, in_shards("m-bf16").values()))
    monkeypatch.setattr(disk, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(CheckpointError, match="on the disk of"):
        resolve(NAME, confirm=lambda plan: pytest.fail("asked in vain"))
    monkeypatch.setattr(disk, "free_bytes", lambda folder: needed)
    resolve(NAME)


def test_a_config_alone(local_hub, tmp_path):
    local_hub.add(NAME, in_shards("m-bf16"))
    path = resolve(NAME, weights=False, confirm=lambda plan: pytest.fail("asked"))
    assert read_config(path) == CONFIG
    with open_source(path) as source:
        assert source.dtypes["BF16"] > 0
    assert not path.is_relative_to(tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


def test_bytes_are_reported(local_hub):
    told = []
    local_hub.add(NAME, repository())
    resolve(f"{NAME}:q8_0", progress=told.append)
    assert sum(told) == len(model("q8_0")[0])


def test_a_cut_download_goes_on(local_hub):
    data = model("q8_0")[0]
    local_hub.add(NAME, repository(["q8_0"]))
    resolve(NAME, weights=False)  # the header
    local_hub.log.clear()
    local_hub.fault("store:GET .*gguf", "cut", len(data) // 2, times=1)
    assert resolve(NAME).read_bytes() == data
    firsts = [int(each.removeprefix("bytes=").partition("-")[0]) for _, _, each in local_hub.log if each]
    assert max(firsts) > len(data) // 3


# --- listings and files that must not be trusted ---


HOSTILE = (
    "../x.gguf",
    "a/../../x.gguf",
    "/etc/x.gguf",
    "a//x.gguf",
    "./x.gguf",
    "a\\x.gguf",
    "a\0.gguf",
    "a\n.gguf",
    "x" * 300 + ".gguf",
    "a/" * 20 + "x.gguf",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_no_models(local_hub, tmp_path, name):
    local_hub.add(NAME, {name: model()[0]})
    with pytest.raises(CheckpointError) as caught:
        resolve(NAME)
    assert str(caught.value).isprintable()
    local_hub.add(NAME, {name: model()[0], "m-q2_k.gguf": model("q2_k")[0]})
    assert resolve(NAME).name == "m-q2_k.gguf"
    assert [path.name for path in tmp_path.rglob("*.gguf")] == ["m-q2_k.gguf"]


@pytest.mark.parametrize("size", [-1, 1 << 70, "9", 1.5, True, [], 0])
def test_hostile_sizes(local_hub, size, monkeypatch):
    """A size that cannot be is unknown."""
    local_hub.add(NAME, repository(["q2_k"]))
    _listing_with(local_hub, monkeypatch, lambda each: each | {"size": size})
    assert resolve(NAME).read_bytes() == model("q2_k")[0]


@pytest.mark.parametrize("wrong", [-32, 32, 1 << 40])
def test_a_size_that_the_header_contradicts(local_hub, monkeypatch, wrong):
    local_hub.add(NAME, repository(["q2_k"]))
    _listing_with(local_hub, monkeypatch, lambda each: each | {"size": each["size"] + wrong})
    with pytest.raises(CheckpointError, match=r"^owner/name/m-q2_k\.gguf: "):
        resolve(NAME)


def test_no_sizes(local_hub):
    local_hub.sizes = False
    local_hub.add(NAME, repository(["q2_k"]))
    plans = []
    resolve(NAME, confirm=lambda plan: plans.append(plan) or True)
    assert 0 <= len(model("q2_k")[0]) - plans[0].nbytes < 32  # by its header, which does not tell the last padding


def _listing_with(hub, monkeypatch, change):
    from tests.support import hub_server

    send_json = hub_server.send_json

    def changed(request, value):
        if isinstance(value, dict):
            value["siblings"] = [change(each) for each in value["siblings"]]
        send_json(request, value)

    monkeypatch.setattr(hub_server, "send_json", changed)


def test_thousands_of_files(local_hub):
    local_hub.add(NAME, {f"m{i}-q4_k_m.gguf": b"%d" % i for i in range(5000)})
    with pytest.raises(ChoiceError) as caught:
        resolve(f"{NAME}:q4_k_m")
    assert len(str(caught.value)) <= 1000
    local_hub.add(NAME, {f"m-{i:05d}-of-99999.gguf": b"x" for i in range(5000)})
    with pytest.raises(CheckpointError, match="is one of 99999 shards, of which the hub has 5000"):
        resolve(NAME)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"<!DOCTYPE html>" + b"x" * 5000, CheckpointError, "is not a GGUF file, but a web page"),
        (b"", CheckpointError, "is not a GGUF file"),
        (model()[0][:2000], CheckpointError, "more than the 1,442 bytes behind it can hold"),
        (model()[0][:-1000], CheckpointError, "cut off"),
        (model()[0] + bytes(64), CheckpointError, "has 64 bytes behind its last tensor"),
        (model()[0].replace(b"qwen2", b"llama"), CheckpointError, "general.architecture: is llama"),
    ],
)
def test_files_that_are_no_models_are_refused_before_they_are_fetched(local_hub, tmp_path, data, error, words):
    local_hub.add(NAME, {"m-q4_k_m.gguf": data})
    with pytest.raises((error, ConfigError)) as caught:
        resolve(NAME, confirm=lambda plan: pytest.fail("asked in vain"))
    assert caught.value.file == "owner/name/m-q4_k_m.gguf"
    assert words in str(caught.value)
    assert not list((tmp_path / "hub").rglob("*.gguf"))


@pytest.mark.parametrize(
    ("role", "kind"),
    [(role, kind) for role in ("hub", "store") for kind in ("status", "hang", "loop", "page")] + [("store", "cut")],
)
def test_faults_of_the_header(local_hub, role, kind):
    local_hub.add(NAME, repository(["q4_k_m"]))
    local_hub.fault(f"{role}:GET .*gguf", kind, 503 if kind == "status" else 100)
    with pytest.raises(CheckpointError) as caught:
        resolve(NAME)
    assert str(caught.value).startswith(("owner/name: cannot be downloaded: ", "owner/name/m-q4_k_m.gguf: "))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("sha", ["../../../x", "", "a/b", None])
def test_a_commit_that_is_none(local_hub, monkeypatch, tmp_path, sha):
    from tests.support import hub_server

    monkeypatch.setattr(hub_server, "commit_of", lambda files: sha)
    local_hub.repos[NAME] = {"main": repository(["q4_k_m"])}
    with pytest.raises(CheckpointError, match="does not answer as a hub does"):
        resolve(NAME)
    assert not list(tmp_path.rglob("*.gguf"))
