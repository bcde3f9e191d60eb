"""The bill of materials is CycloneDX 1.6 and says what the manifest says."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cxr_edge.runtime import Bundle
from cxr_edge.runtime.bundles.bom import bill_of_materials
from cxr_edge.runtime.cli.bundles import inspect
from cxr_edge.runtime.predictor import packaged_model


def assert_is_cyclonedx(text):
    pytest.importorskip("jsonschema")
    pytest.importorskip("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_inspect_prints_one_that_the_schema_accepts():
    result = CliRunner().invoke(inspect, ["--bom"])
    assert result.exit_code == 0
    assert_is_cyclonedx(result.output)


def test_it_names_files_data_metrics_and_tools():
    manifest = Bundle.open(packaged_model()).manifest
    bom = bill_of_materials(manifest)
    assert bom == bill_of_materials(manifest)
    model = bom["metadata"]["component"]
    assert {c["name"]: c["hashes"][0]["content"] for c in model["components"]} == {
        file.path: file.sha256 for file in manifest.files
    }
    card = model["modelCard"]
    assert manifest.training["data"]["fingerprint"] in json.dumps(card["modelParameters"]["datasets"])
    assert {m["slice"] for m in card["quantitativeAnalysis"]["performanceMetrics"]} == {"validation", "holdout"}
    assert "Not a medical device" in card["considerations"]["useCases"][0]
    tools = {c["name"]: c["version"] for c in bom["components"]}
    assert {"keras", "tensorflow", "onnx", "cxr-edge"} <= tools.keys()
    assert sum(c["name"] == "keras" for c in bom["components"]) == 1


@pytest.mark.parametrize(
    "training", [{}, {"data": 3, "metrics": [1], "versions": None}, {"metrics": {"a": {"b": None}, "c": 4}}]
)
def test_provenance_that_says_nothing_is_left_out(training):
    manifest = replace(Bundle.open(packaged_model()).manifest, training=training, calibration={}, created="yesterday")
    assert_is_cyclonedx(json.dumps(bill_of_materials(manifest)))
