"""The conformance set, and the page about packs with its reader in C."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from qwq_ref import oracle
from qwq_ref.errors import (
    UsageError,
)
from qwq_ref.oracle import Golden, compare
from qwq_ref.oracle.distance import error
from qwq_ref.oracle.graph import (
    letters,
    tap_names,
)
from qwq_ref.oracle.judge.metrics import MARGIN
from qwq_ref.oracle.packs import shipped_models
from qwq_ref.oracle.packs.sizes import reduce
from tests.support.packs import (
    CONFIG,
    PHASES,
    bin_and_sign,
    contents,
    refused,
)
from tests.support.paths import DOCS


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    shipped_models.build(folder)
    return folder


def test_the_set_is_what_its_models_say():
    assert set(oracle.conformance()) == set(shipped_models.MODELS)


@pytest.mark.parametrize("name", oracle.conformance())
def test_shipped_packs_are_what_is_recorded(built, name):
    """Packs and their models agree. The last bits may differ on another machine."""
    shipped, fresh = oracle.path(name), built / name
    assert set(contents(shipped)) == set(contents(fresh))
    for file in ("config.json", "model.safetensors"):
        assert (shipped / "model" / file).read_bytes() == (fresh / "model" / file).read_bytes()
    one, two = (json.loads((folder / "manifest.json").read_text()) for folder in (shipped, fresh))
    a, b = one.pop("rounding"), two.pop("rounding")
    assert set(a) == set(b)
    for phase, taps in a.items():
        assert set(taps) == set(b[phase])
        for tap, errors in taps.items():
            for precision, value in errors.items():
                assert value == pytest.approx(b[phase][tap][precision], rel=0.5), (phase, tap, precision)
    for values in (one, two):
        del values["made_by"]
        for phase in values["phases"]:
            del phase["sha256"]
    assert one == two
    with Golden.open(shipped) as ours, Golden.open(fresh) as theirs:
        ours.verify()
        for phase in ours.manifest.phases:
            for tap in ours.manifest.sizes:
                x, y = ours.read(phase.name, tap), theirs.read(phase.name, tap)
                assert np.array_equal(np.isfinite(x), np.isfinite(y))
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6 * np.abs(x[np.isfinite(x)]).max(), err_msg=tap)


@pytest.mark.parametrize("name", oracle.conformance())
def test_transformers_makes_the_logits_of_a_shipped_pack(name):
    import transformers

    with Golden.open(oracle.path(name)) as golden:
        model = transformers.AutoModelForCausalLM.from_pretrained(golden.model_path, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(torch.tensor([golden.manifest.token_ids])).logits[0].numpy()
        for phase in golden.manifest.phases:
            allowed = MARGIN * golden.manifest.rounding[phase.name]["lm_head"]["fp32"]
            theirs = logits[phase.start : phase.S]
            assert error(theirs, golden.read(phase.name, "lm_head")) <= allowed


def test_names_of_shipped_packs():
    with pytest.raises(
        UsageError, match="nothing: is not a folder, and not a shipped pack; those are gqa, tied, window, yarn"
    ):
        oracle.path("nothing")
    report = compare("tied", oracle.path("tied"), coverage=False)
    assert report.passed
    refused(lambda: compare("gqa-2", {"lm_head": np.zeros(3)}), "gqa-2", None, "is not a folder")


def test_the_page_and_the_reader_in_c_are_the_same_text():
    page = (DOCS / "pack.md").read_text()
    assert re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL) == [(DOCS / "golden_reader.c").read_text()]


def test_the_page_lists_every_tap():
    page = (DOCS / "pack.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| \[([^]]*)\] \|", page, re.MULTILINE))
    relative = {
        tap.removeprefix("model.layers.0."): tap for tap in tap_names(dataclasses.replace(CONFIG, num_hidden_layers=1))
    }
    for name, tap in relative.items():
        assert rows[name].split(", ") == [part.replace("*", " ") for part in letters(tap)], tap
    assert len(relative) == 26


def test_the_page_has_the_sketch_right():
    page = (DOCS / "pack.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [0-9a-f]{16} \| (\d+) \| ([+-]) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for i, where, sign in rows:
        assert bin_and_sign(int(i)) == (int(where), int(f"{sign}1"))
    sketch = reduce(np.arange(1.0, 5)[None], ("T", "D"), "sketch")[0]
    assert {int(i): sketch[i] for i in np.flatnonzero(sketch)} == {47: -1, 52: 2, 15: 3, 44: -4}


def test_the_schema_knows_every_tap_and_weight(schema):
    properties = schema.schema["properties"]
    config = dataclasses.replace(CONFIG, num_hidden_layers=12)
    for field, names in (("taps", tap_names(config)), ("weights", list(config.tensors()))):
        pattern = re.compile(properties[field]["propertyNames"]["pattern"])
        assert all(pattern.search(name) for name in names)
        assert not [name for name in names if pattern.search(f"x{name}") or pattern.search(f"{name}x")]


@pytest.fixture(scope="module")
def reader_in_c(tmp_path_factory):
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("NO C COMPILER (cc, gcc, clang): docs/golden_reader.c was not compiled")
    program = tmp_path_factory.mktemp("c") / "golden_reader"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *flags, DOCS / "golden_reader.c", "-o", program, "-lm"], check=True)
    return program


def test_the_reader_in_c_reads_what_numpy_reads(reader_in_c, recorded):
    with Golden.open(recorded) as golden:
        for phase in PHASES[:2]:
            for tap in golden.manifest.sizes:
                done = subprocess.run(
                    [reader_in_c, recorded / f"{phase.name}.safetensors", tap],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                shape, _, rest = done.stdout.partition(" rms ")
                value = golden.read(phase.name, tap)
                finite = value[np.isfinite(value)].astype(np.float64)
                assert [int(n) for n in shape.split()] == list(value.shape)
                assert float(rest.split()[0]) == pytest.approx(np.sqrt(np.mean(finite**2)), rel=1e-7)
                assert rest.split()[1:] == ["hidden", str(value.size - finite.size)]


def test_the_reader_in_c_refuses(reader_in_c, recorded, tmp_path):
    (tmp_path / "short").write_bytes((recorded / "prompt.safetensors").read_bytes()[:-4])
    (tmp_path / "long").write_bytes(b"\xff" * 100)
    (tmp_path / "empty").write_bytes(b"")
    for arguments, words in (
        ([], "usage"),
        ([recorded / "nothing", "lm_head"], "usage"),
        ([recorded / "prompt.safetensors", "lm_hea"], "no such tap"),
        ([recorded / "model" / "model.safetensors", "model.norm.weight"], "not float32"),
        ([tmp_path / "short", "lm_head"], "cut short"),
        ([tmp_path / "long", "lm_head"], "no header"),
        ([tmp_path / "empty", "lm_head"], "usage"),
    ):
        done = subprocess.run([reader_in_c, *arguments], capture_output=True, text=True)
        assert (done.returncode, words in done.stderr) == (1, True), arguments
