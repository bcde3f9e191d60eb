"""Results of `verify` as JUnit XML for CI systems: a test suite for each file, a test case for each limit."""

from __future__ import annotations

from xml.etree import ElementTree

from cxr_edge.export.verification.verify import FileResult, Verification


def junit(verification: Verification) -> str:
    """The XML document. A file that could not run is an error; a limit that did not hold is a failure."""
    root = ElementTree.Element("testsuites", name="cxr-edge verify")
    for result in verification.files:
        root.append(_suite(result))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, 0)) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(result: FileResult) -> ElementTree.Element:
    failed = sum(not c.passed for c in result.checks)
    counts = {"tests": len(result.checks) + 1, "failures": failed, "errors": int(result.error is not None)}
    suite = ElementTree.Element("testsuite", {k: str(v) for k, v in counts.items()}, name=result.file.path)
    runs = ElementTree.SubElement(suite, "testcase", classname=result.file.path, name="runs")
    if result.error:
        kind, _, reason = result.error.partition(": ")
        ElementTree.SubElement(runs, "error", type=kind, message=reason)
    for each in result.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=result.file.path, name=each.name)
        if not each.passed:
            ElementTree.SubElement(case, "failure", type="gate", message=str(each))
    return suite
