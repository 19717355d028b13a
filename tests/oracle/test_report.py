"""Reports for machines: well-formed for all names and paths."""

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from qwq_ref import oracle
from tests.support.packs import DECODE, IDS, WEIGHTS
from tests.support.reports import HOSTILE


@pytest.mark.parametrize("ids", [None, [1, 2]], ids=["wrong", "other tokens"])
def test_junit_is_well_formed_whatever_a_path_holds(recorded, tmp_path, ids):
    """Control characters, halves of surrogate pairs and markup become text of an XML file in UTF-8."""
    pack = tmp_path / "a\x01\x1b<&\ufffe\"'b"
    pack.symlink_to(recorded)
    name = f"model.layers.0.{HOSTILE}"
    candidate = oracle.Candidate(
        HOSTILE, {("prompt", "lm_head"): lambda: np.zeros((len(IDS) - DECODE, 31), np.float32)}, ids, unknown=[name]
    )
    report = oracle.compare(pack, candidate, model=WEIGHTS, explain=False)
    suite = ET.fromstring(report.junit().encode("utf-8")).find("testsuite")
    assert suite.get("name").endswith("a??<&?\"'b")
    assert (suite.get("tests"), suite.get("failures")) == (str(len(suite)), "1")
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    assert len(suite.findall("testcase/failure")) == 1


def test_junit_tells_the_whole_report_at_the_first_divergence(recorded):
    report = oracle.compare(recorded, {"lm_head": np.zeros((len(IDS) - DECODE, 31), np.float32)}, explain=False)
    failure = ET.fromstring(report.junit()).find("testsuite/testcase[@name='lm_head']/failure")
    assert failure.get("message").startswith("error 1")
    assert failure.text == str(report)
