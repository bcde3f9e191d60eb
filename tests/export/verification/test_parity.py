from dataclasses import fields, replace

import numpy as np
import pytest

from cxr_edge.common.statistics import calibration_error, dice, roc_auc
from cxr_edge.export.verification.gates import DEFAULTS, HIGHEST, LEAST, Gate, check, load_gates
from cxr_edge.export.verification.parity import compare, count_flips, find_flips, rank_correlation, top_overlap
from cxr_edge.runtime import UsageError
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, Manifest, ModelFile, OperatingPoint
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.engines.base import OUTPUTS

FILE = ModelFile("model.onnx", "onnx", "fp32", "0" * 64, 1)
POINTS = (OperatingPoint("balanced", 0.5, "x"), OperatingPoint("screening", 0.2, "x"))
MANIFEST = Manifest("cnn", "2026", InputContract(), HeatmapGeometry(32, 15.5), POINTS, novelty_threshold=0.9)


@pytest.fixture
def outputs():
    random = np.random.default_rng(0)
    logit = random.normal(0, 3, 400).astype(np.float32)
    heatmap = random.uniform(0, 1, (400, 7, 7)).astype(np.float32)
    return Outputs(1 / (1 + np.exp(-logit)), logit, heatmap, random.uniform(0, 1, 400).astype(np.float32))


@pytest.fixture
def labels(outputs):
    return (outputs.logit + np.random.default_rng(1).normal(0, 2, 400) > 0).astype(np.int64)


def test_equal_outputs_differ_by_nothing(outputs, labels):
    parity = compare(FILE, "CPU", outputs, outputs, labels, MANIFEST)
    assert parity.logit_max == parity.probability_max == parity.auc_delta == parity.ece_delta == 0
    assert parity.flips == {"balanced": 0, "screening": 0} and parity.auc_interval == (0, 0)
    assert parity.heatmap_rank_correlation == parity.heatmap_iou == pytest.approx(1)
    assert all(c.passed for c in check(parity, DEFAULTS["fp32"]))


def test_paired_statistics_and_calibration_are_of_the_same_images(outputs, labels):
    from cxr_edge.export.verification.paired import brier

    shifted = replace(outputs, probability=np.clip(outputs.probability - 0.2, 0, 1), logit=outputs.logit + labels)
    parity = compare(FILE, "CPU", shifted, outputs, labels, MANIFEST)
    assert parity.auc_delta > 0 and parity.delong_p < 0.01 and parity.auc == roc_auc(labels, shifted.logit)
    assert parity.mcnemar_p.keys() == {"balanced", "screening"} and min(parity.mcnemar_p.values()) < 0.05
    assert parity.ece == calibration_error(labels, shifted.probability)
    assert parity.brier_delta == brier(labels, shifted.probability) - brier(labels, outputs.probability) > 0
    same = compare(FILE, "CPU", outputs, outputs, labels, MANIFEST)
    assert same.delong_p == 1 and set(same.mcnemar_p.values()) == {1} and same.brier_delta == 0


def test_a_flip_is_any_change_of_three_answers(outputs):
    point = OperatingPoint("triage", 0.7, "x", rule_out=0.3)
    reference = replace(outputs, probability=np.array([0.1, 0.1, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9]))
    file = replace(outputs, probability=np.array([0.2, 0.4, 0.2, 0.6, 0.8, 0.8, 0.5, np.nan]))
    assert count_flips(file, reference, point) == 5
    flips = find_flips(file, reference, [point, POINTS[0]])
    crossed = {flip.row: flip.thresholds for flip in flips}
    assert crossed.keys() == {1, 2, 4, 6, 7}
    assert crossed[1] == {"triage": 0.3} and crossed[4] == {"triage": 0.7}
    assert crossed[2] == {"triage": 0.3, "balanced": 0.5}


def test_an_unsure_answer_is_not_a_right_one(outputs, labels):
    point = OperatingPoint("triage", 0.7, "x", rule_out=0.3)
    manifest = replace(MANIFEST, operating_points=(*POINTS, point))
    right = replace(outputs, probability=np.where(labels == 1, 0.9, 0.1))
    unsure = replace(right, probability=np.where(np.arange(400) < 20, 0.4 + 0.2 * labels, right.probability))
    parity = compare(FILE, "CPU", unsure, right, labels, manifest)
    assert parity.flips == {"balanced": 0, "screening": int((labels[:20] == 0).sum()), "triage": 20}
    assert parity.mcnemar_p["triage"] < 1e-4 and parity.mcnemar_p["balanced"] == 1


def test_every_gate_holds_what_it_is_called_by(outputs, labels):
    """Each limit, set just within and just beyond what was measured."""
    random = np.random.default_rng(2)
    outputs = replace(outputs, lungs=random.uniform(0, 1, (400, 8, 8)).astype(np.float32))
    worse = replace(
        outputs,
        probability=outputs.probability**2,
        logit=outputs.logit + random.normal(0, 2, 400),
        heatmap=outputs.heatmap[:, ::-1],
        novelty=outputs.novelty + 0.05,
        lungs=outputs.lungs[:, ::-1],
    )
    parity = compare(FILE, "CPU", worse, outputs, labels, replace(MANIFEST, calibration={"images": 40}))
    for name, measure in {**HIGHEST, **LEAST}.items():
        value = measure(parity)
        outward = 1e-6 if name in HIGHEST else -1e-6
        assert [c.passed for c in check(parity, Gate(**{name: value + outward}))] == [True], name
        assert [c.passed for c in check(parity, Gate(**{name: value - outward}))] == [False], name
    assert {*HIGHEST, *LEAST} == {field.name for field in fields(Gate)}


def test_one_flipped_decision_is_found_at_its_operating_point(outputs, labels):
    probability = outputs.probability.copy()
    row = int(np.argmin(np.abs(probability - 0.21)))
    probability[row] = 0.19
    parity = compare(FILE, "CPU", replace(outputs, probability=probability), outputs, labels, MANIFEST)
    assert parity.flips == {"balanced": 0, "screening": 1} and parity.flip_rate == 1 / 400
    assert [c.name for c in check(parity, DEFAULTS["fp32"]) if not c.passed] == ["probability_max", "flip_rate"]


def test_images_that_change_sides_of_the_novelty_threshold_are_counted(outputs, labels):
    novelty = outputs.novelty.copy()
    novelty[np.flatnonzero(novelty < 0.9)[:3]] = 2.0
    assert compare(FILE, "CPU", replace(outputs, novelty=novelty), outputs, labels, MANIFEST).novelty_flips == 3


def test_lost_sensitivity_is_negative_and_fails_the_int8_gate(outputs, labels):
    probability = outputs.probability - 0.2
    parity = compare(FILE, "CPU", replace(outputs, probability=probability), outputs, labels, MANIFEST)
    assert parity.sensitivity_delta < -0.05 < 0.05 < parity.specificity_delta
    assert "sensitivity_drop" in [c.name for c in check(parity, DEFAULTS["int8"]) if not c.passed]


def test_nan_never_passes(outputs, labels):
    broken = Outputs(*(np.full_like(getattr(outputs, name), np.nan) for name in OUTPUTS))
    with np.errstate(invalid="ignore"):
        parity = compare(FILE, "CPU", broken, outputs, labels, MANIFEST)
    for gate in DEFAULTS.values():
        assert not all(c.passed for c in check(parity, gate))


def test_heatmap_agreement():
    random = np.random.default_rng(0)
    maps = random.uniform(0.1, 1, (5, 7, 7))
    empty = np.zeros((5, 7, 7))
    np.testing.assert_allclose(rank_correlation(maps**3, maps), 1)
    np.testing.assert_allclose(rank_correlation(1.1 - maps, maps), -1)
    np.testing.assert_allclose(top_overlap(2 * maps, maps), 1)
    assert rank_correlation(maps, random.uniform(0.1, 1, (5, 7, 7))).max() < 0.6
    for measure in (rank_correlation, top_overlap):
        np.testing.assert_allclose(measure(empty, empty), 1)
        np.testing.assert_allclose(measure(empty, maps), 0)


def test_gates_file_overrides_key_by_key(tmp_path):
    path = tmp_path / "gates.toml"
    path.write_text("[int8]\nflip_rate = 0.02\n")
    gates = load_gates(path)
    assert gates["int8"].flip_rate == 0.02 and gates["int8"].auc_drop == DEFAULTS["int8"].auc_drop
    assert (
        gates["fp32"] == DEFAULTS["fp32"] == Gate(logit_max=1e-3, probability_max=1e-4, flip_rate=0.0, lungs_dice=0.999)
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[int8]\nfliprate = 1", "unknown key 'fliprate'"),
        ("[int4]\nflip_rate = 1", "is not a gate"),
        ("[int8]\nflip_rate = true", "number"),
        ("[int8", "TOML"),
    ],
)
def test_a_misspelt_gate_is_an_error(tmp_path, text, says):
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        load_gates(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_gates(tmp_path / "absent.toml")


def test_lungs_are_compared_where_both_have_them(outputs, labels):
    random = np.random.default_rng(3)
    lungs = random.uniform(0, 1, (400, 8, 8)).astype(np.float32)
    expected = replace(outputs, lungs=lungs)
    parity = compare(FILE, "CPU", expected, expected, labels, MANIFEST)
    assert parity.lungs_dice == 1 and parity.lungs_max == 0
    assert "lungs_dice" in {c.name for c in check(parity, DEFAULTS["fp32"])}
    shifted = replace(outputs, lungs=np.clip(lungs + 0.1, 0, 1))
    parity = compare(FILE, "CPU", shifted, expected, labels, MANIFEST)
    assert parity.lungs_max == pytest.approx(0.1) and 0.85 < parity.lungs_dice < 0.95
    assert [c.name for c in check(parity, Gate(lungs_dice=0.99)) if not c.passed] == ["lungs_dice"]
    for lacking, other in ((outputs, expected), (expected, outputs)):
        parity = compare(FILE, "CPU", lacking, other, labels, MANIFEST)
        assert parity.lungs_dice is parity.lungs_max is None and not check(parity, Gate(lungs_dice=0.99))


def test_dice_of_masks():
    masks = np.zeros((3, 2, 2), bool)
    other = masks.copy()
    masks[1, 0], other[1, :, 0] = True, True
    other[2] = True
    np.testing.assert_allclose(dice(masks, other), [1, 0.5, 0])
