import json
import re
import shutil

import cv2
import numpy as np
import pytest
from support import SHARED, needs_shared

from cxr_edge.common.dataset import CLASSES, read_dataset
from cxr_edge.train.data.duplicates import BLOCK, MAX_DISTANCE, similar
from cxr_edge.train.data.shortcuts import Cues, cues_together, measure, single_cues

#: Most of them draw or read a data set.
pytestmark = pytest.mark.slow


@pytest.fixture
def data(phantoms, tmp_path):
    """A copy of the phantoms to spoil."""
    return shutil.copytree(phantoms, tmp_path / "data")


@pytest.fixture
def audited(cli, tmp_path):
    """Audit a folder: -> (exit code, audit.json, audit.html, standard error)."""

    def call(folder):
        code, _, err = cli("audit", folder, "-o", tmp_path / "audit")
        output = tmp_path / "audit"
        assert {path.name for path in output.iterdir()} == {"audit.html", "audit.json"}
        return code, json.loads((output / "audit.json").read_text()), (output / "audit.html").read_text(), err

    return call


def found(record):
    return {row["check"]: row["found"] for row in record["checks"] if row["found"]}


def auc(record):
    return {shortcut["cue"]: shortcut["auc"] for shortcut in record["shortcuts"]}


def test_a_clean_data_set_passes(phantoms, audited):
    code, record, page, err = audited(phantoms)
    assert code == 0 and record["passed"] and record["schema_version"] == 1
    assert found(record) == {} and {row["verdict"] for row in record["checks"]} == {"ok"}
    assert record["images"] == len(read_dataset(phantoms)) and record["patients"] == 60
    assert {(row["split"], row["class"]): row["patients"] for row in record["counts"]} == {
        **{("train", name): 24 for name in CLASSES},
        **{("test", name): 6 for name in CLASSES},
    }
    for row in record["counts"]:
        assert row["images"] == len(list((phantoms / row["split"] / row["class"]).iterdir()))
        assert 280 <= row["height"]["min"] < row["height"]["median"] < row["height"]["max"] <= 360
    assert "Passed" in page and "Traceback" not in err


def test_the_page_needs_nothing_beside_it(phantoms, audited):
    page = audited(phantoms)[2]
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]*)""", page)
    assert len(sources) > 20 and all(re.match(r"data:image/(png|jpeg);base64,", source) for source in sources)
    assert "<script" not in page and "<link" not in page and "@import" not in page


def test_json_on_standard_output_is_the_file(data, cli, tmp_path):
    code, out, _ = cli("audit", data, "-o", tmp_path / "audit", "--format", "json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "audit" / "audit.json").read_text())


def test_the_table_tells_counts_checks_and_shortcuts(phantoms, cli, tmp_path):
    code, out, _ = cli("audit", phantoms, "-o", tmp_path / "audit")
    assert code == 0
    assert re.search(r"train +PNEUMONIA +32 +24 +0 +\d+–\d+–\d+", out)
    assert re.search(r"patients in several splits +0 +ok", out) and re.search(r"all together +0\.\d{3}", out)


def test_a_patient_in_two_splits_fails(data, audited):
    name = "person0_bacteria_1.jpeg"
    (data / "train" / "PNEUMONIA" / name).rename(data / "test" / "PNEUMONIA" / name)
    code, record, page, _ = audited(data)
    assert code == 1 and not record["passed"]
    assert found(record) == {"patients in several splits": 1}
    (leak,) = record["leaks"]
    assert leak["patient"] == "bacteria-0" and leak["across"] == ["splits"]
    assert leak["files"] == ["train/PNEUMONIA/person0_bacteria_0.jpeg", f"test/PNEUMONIA/{name}"]
    assert "bacteria-0" in page and "Failed" in page


def test_an_unreadable_file_fails_and_is_named(data, audited):
    broken, short = data / "train" / "NORMAL" / "IM-0000-0000.jpeg", data / "test" / "NORMAL" / "IM-0004-0000.jpeg"
    broken.write_bytes(b"broken")
    short.write_bytes(short.read_bytes()[:5000])
    code, record, page, err = audited(data)
    assert code == 1 and found(record) == {"unreadable files": 2}
    files = ["train/NORMAL/IM-0000-0000.jpeg", "test/NORMAL/IM-0004-0000.jpeg"]
    assert [each["file"] for each in record["unreadable"]] == files
    assert all(name in page and name in err for name in files)
    assert sum(row["unreadable"] for row in record["counts"]) == 2


def test_a_class_without_a_readable_file_is_still_reported(data, audited):
    normal = list(data.rglob("NORMAL/*"))
    for path in normal:
        path.write_bytes(b"")
    code, record, page, _ = audited(data)
    assert code == 1 and len(record["unreadable"]) == len(normal)
    assert record["shortcuts"] == [] and record["shortcuts_together"] == {"auc": None}
    assert {row["class"] for row in record["counts"] if row["width"] is None} == {"NORMAL"}
    assert "nothing to compare" in page


def test_a_copy_in_another_split_fails_under_any_name(data, audited):
    shutil.copy(data / "train" / "NORMAL" / "IM-0001-0000.jpeg", data / "test" / "NORMAL" / "IM-0777-0000.jpeg")
    code, record, _, _ = audited(data)
    assert code == 1 and record["leaks"] == [] and record["near_duplicates"] == []
    (group,) = record["exact_duplicates"]
    assert group["files"] == ["train/NORMAL/IM-0001-0000.jpeg", "test/NORMAL/IM-0777-0000.jpeg"]
    assert group["across"] == ["splits", "patients"]


def test_a_copy_within_a_split_is_shown_but_no_failure(data, audited):
    shutil.copy(data / "train" / "NORMAL" / "IM-0001-0000.jpeg", data / "train" / "NORMAL" / "IM-0001-0009.jpeg")
    code, record, page, _ = audited(data)
    assert code == 0 and found(record) == {"exact duplicates": 1}
    assert "IM-0001-0009" in page


def test_a_picture_stored_anew_is_found(data, audited):
    gray = cv2.imread(str(data / "train" / "NORMAL" / "IM-0001-0000.jpeg"), cv2.IMREAD_GRAYSCALE)
    half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    anew = data / "train" / "PNEUMONIA" / "person900_virus_1.jpeg"
    cv2.imwrite(str(anew), half, [cv2.IMWRITE_JPEG_QUALITY, 60])
    code, record, page, _ = audited(data)
    assert code == 0 and record["exact_duplicates"] == []
    (group,) = record["near_duplicates"]
    assert group["files"] == ["train/NORMAL/IM-0001-0000.jpeg", "train/PNEUMONIA/person900_virus_1.jpeg"]
    assert group["across"] == ["classes", "patients"]
    assert "across classes and patients" in page


def test_a_planted_shortcut_is_found(data, audited):
    before = auc(audited(data)[1])
    for path in data.rglob("NORMAL/*"):
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        gray[:20] = gray[-20:] = 250
        cv2.imwrite(str(path), gray)
    code, record, page, _ = audited(data)
    assert code == 0  # a shortcut is to be known, not a fault of the files
    assert auc(record)["border mean"] > 0.95 > before["border mean"]
    assert record["shortcuts_together"]["auc"] > 0.95
    (border,) = (shortcut for shortcut in record["shortcuts"] if shortcut["cue"] == "border mean")
    assert border["higher_in"] == "NORMAL" and border["low"] > 0.9
    assert "border mean" in page


@pytest.mark.parametrize("what", ["nothing there", "no layout", "empty class", "output is a file"])
def test_bad_input_is_exit_2_and_writes_nothing(data, tmp_path, cli, what):
    output = tmp_path / "audit"
    if what == "empty class":
        shutil.rmtree(data / "train" / "NORMAL")
    elif what == "output is a file":
        output.write_text("mine")
    folder = {"nothing there": tmp_path / "absent", "no layout": data / "train" / "NORMAL"}.get(what, data)
    code, out, err = cli("audit", folder, "-o", output)
    assert code == 2 and out == ""
    assert {"empty class": "no image files", "output is a file": "is a file"}.get(what, "Kaggle layout") in err
    assert output.read_text() == "mine" if what == "output is a file" else not output.exists()


def test_one_split_goes_by_its_folder(phantoms, audited):
    code, record, _, _ = audited(phantoms / "test")
    assert code == 0 and [row["split"] for row in record["counts"]] == ["test", "test"]


def test_cues_are_what_they_say():
    gray = np.full((100, 200), 100, np.uint8)
    gray[8:-8, 16:-16] = 200
    gray[:8] = 10
    cues = measure(gray, 5000)
    border = 100 * 200 - 84 * 168
    assert cues.file_size == 5000 and cues.bytes_per_pixel == 0.25 and (cues.aspect_ratio, cues.height) == (2, 100)
    assert cues.near_black_border == pytest.approx(8 * 200 / border)
    assert cues.border_mean == pytest.approx((10 * 8 * 200 + 100 * (border - 8 * 200)) / border)
    assert (cues.mean_intensity, cues.intensity_std) == (pytest.approx(gray.mean()), pytest.approx(gray.std()))


def test_aucs_point_to_the_class_with_larger_values():
    def cue(border):
        return Cues(1, 1, 1, 1, 1, 1, border, 1)

    shortcuts = single_cues([cue(b) for b in (9, 7, 5, 6, 1, 2)], [0, 0, 0, 1, 1, 1], list("abcdef"))
    assert shortcuts[0].cue == "border mean" and shortcuts[0].higher_in == "NORMAL"
    assert shortcuts[0].auc == pytest.approx(8 / 9)
    assert all(each.auc == 0.5 and each.higher_in is None for each in shortcuts[1:])


def test_the_interval_is_hanley_and_mcneils():
    # A cue of AUC 0.5 with 50 patients a class: variance 1/4 + 2 * 49 * (1/3 - 1/4), by 50 * 50.
    shortcut = single_cues([Cues(*[1.0] * 8)] * 100, [0, 1] * 50, [str(n) for n in range(100)])[0]
    margin = 1.96 * np.sqrt((0.25 + 98 / 12) / 2500)
    assert (shortcut.low, shortcut.high) == (pytest.approx(0.5 - margin), pytest.approx(0.5 + margin))


def test_cues_together_never_learn_the_patient():
    # Cues that name the patient and say nothing of the class: 8 cues part 10 patients, and only folds that share
    # patients would profit.
    patients = np.repeat(np.arange(10), 5)
    labels, names = list(patients % 2), [f"person{p}" for p in patients]
    draws = np.random.default_rng(0).normal(size=(6, 10, 8))
    aucs = [cues_together([Cues(*row) for row in draw[patients].tolist()], labels, names) for draw in draws]
    assert 0.2 < np.mean(aucs) < 0.8


def test_cues_together_learn_the_class():
    labels, names = [0, 1] * 10, [str(n) for n in range(20)]
    cues = [Cues(1, 1, 1, 1, float(label), 1, 1, 1) for label in labels]
    assert cues_together(cues, labels, names) == 1
    assert cues_together(cues[:8], labels[:8], names[:8]) is None  # four patients of a class are too few


def test_similar_hashes_are_found_wherever_they_lie():
    random = np.random.default_rng(0)
    hashes = random.random((2 * BLOCK + 50, 256)) < 0.5
    for near, of, bits in ((BLOCK + 3, 5, MAX_DISTANCE), (2 * BLOCK + 9, BLOCK + 3, 1), (7, 6, MAX_DISTANCE + 1)):
        hashes[near] = hashes[of]
        hashes[near, :bits] ^= True
    assert similar(hashes) == [[5, BLOCK + 3, 2 * BLOCK + 9]]
    assert similar(np.empty((0, 256), np.bool_)) == []


@needs_shared
def test_real_radiographs_are_known_again_after_resizing(tmp_path, audited):
    originals, resized = SHARED / "data" / "originals", SHARED / "data" / "chest_xray" / "train"
    names = [path.relative_to(originals) for path in sorted(originals.rglob("*.jpeg"))]
    for name in names:
        for split, source in (("train", originals), ("test", resized)):
            (tmp_path / "data" / split / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, tmp_path / "data" / split / name)
    code, record, _, _ = audited(tmp_path / "data")
    assert code == 1 and found(record)["patients in several splits"] == len(names)
    pairs = {tuple(group["files"]) for group in record["near_duplicates"]}
    assert pairs == {(f"train/{name}", f"test/{name}") for name in names}
