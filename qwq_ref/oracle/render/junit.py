"""A report as JUnit XML, for CI systems: one test case a tap and phase."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from .text import what_is_wrong
from .words import printable

if TYPE_CHECKING:
    from .report import Report


def junit(report: Report) -> str:
    """Write a report as JUnit XML. A missing tap is a skipped case."""
    comparison = report.comparison
    suites = ET.Element("testsuites")
    suite = ET.SubElement(suites, "testsuite", name=printable(f"qwq golden {report.golden}"))

    def case(name: str, phase: str) -> ET.Element:
        return ET.SubElement(suite, "testcase", name=printable(name), classname=printable(phase))

    def fail(element: ET.Element, message: str, text: str) -> None:
        ET.SubElement(element, "failure", message=printable(message)).text = printable(text, "\n\t")

    if comparison.mismatch:
        fail(case("tokens", "golden"), comparison.mismatch, comparison.mismatch)
    for result in comparison.results:
        element = case(result.tap, result.phase)
        if result.wrong and not (comparison.drift and result.status == "propagated"):
            wrong = what_is_wrong(result)
            fail(element, wrong, str(report) if result is report.first else wrong)
    for phase, tap in comparison.missing:
        ET.SubElement(case(tap, phase), "skipped")
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, "unicode") + "\n"
