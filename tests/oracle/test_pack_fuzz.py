"""Packs with random bytes or values: a verdict or a GoldenError, and nothing else."""

import functools
import json
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import (
    GoldenError,
)
from qwq_ref.oracle import Golden, compare
from qwq_ref.oracle.graph import (
    phases_of,
)
from qwq_ref.oracle.packs.record import record
from tests.support.packs import (
    CONFIG,
    IDS,
    WEIGHTS,
    changed,
    contents,
    spec_run,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A small pack, and the contents of its files."""
    folder = tmp_path_factory.mktemp("fuzzed") / "pack"
    record(CONFIG, WEIGHTS, folder, IDS[:4], 1, layers=[0], taps=["lm_head", "*.q_rope", "*.scores", "*.resid_post"])
    return folder, contents(folder)


def judged(folder, taps):
    """Return a report, or None if the pack is refused. Any other error is raised."""
    try:
        with Golden.open(folder) as golden:
            report = compare(golden, taps, model=WEIGHTS, explain=False, coverage=False, verify=False)
            str(report)
            json.dumps(report.to_dict(), allow_nan=False)
            ElementTree.fromstring(report.junit())
            return report
    except GoldenError as refusal:
        if not str(refusal).isprintable():
            raise
        return None


@functools.cache
def fuzz_candidate():
    return spec_run(CONFIG, WEIGHTS, phases_of(IDS[:4], 1))


_byte = st.integers(0, 255) | st.sampled_from(list(b'0123456789"{}[],:-.eE\\ '))


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), _byte), min_size=1, max_size=4), st.none() | st.floats(0, 1)
)
def test_edited_bytes_of_a_manifest(fuzzed, edits, cut):
    folder, files = fuzzed
    data = bytearray(files["manifest.json"])
    for place, byte in edits:
        data[int(place * len(data))] = byte
    (folder / "manifest.json").write_bytes(data if cut is None else data[: int(cut * len(data))])
    judged(folder, fuzz_candidate())
    (folder / "manifest.json").write_bytes(files["manifest.json"])


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(1 << 70)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.data(), _json)
def test_any_json_anywhere_in_a_manifest(fuzzed, data, value):
    folder, files = fuzzed
    values = json.loads(files["manifest.json"])
    inner, path = values, []
    while isinstance(inner, (dict, list)) and inner and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))))
        inner = inner[path[-1]]
    (folder / "manifest.json").write_text(json.dumps(changed(values, path, value)))
    judged(folder, fuzz_candidate())
    (folder / "manifest.json").write_bytes(files["manifest.json"])


@given(
    st.sampled_from(["prompt.safetensors", "decode-0.safetensors"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), _byte), min_size=1, max_size=4),
    st.none() | st.floats(0, 1),
)
def test_edited_bytes_of_tensors(fuzzed, name, edits, cut):
    folder, files = fuzzed
    data = bytearray(files[name])
    for place, byte in edits:
        data[int(place * len(data))] = byte
    data = data if cut is None else data[: int(cut * len(data))]
    (folder / name).write_bytes(data)
    judged(folder, fuzz_candidate())
    if bytes(data) != files[name]:
        with pytest.raises(GoldenError), Golden.open(folder) as golden:
            golden.verify()
    (folder / name).write_bytes(files[name])


def test_the_fuzzed_pack_was_sound(fuzzed):
    folder, files = fuzzed
    assert contents(folder) == files
    assert judged(folder, fuzz_candidate()).passed
