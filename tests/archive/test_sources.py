"""What sources give, and which are refused before work starts."""

import io
import json
import os
import tarfile
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import draw

from cxr_edge.archive.sources import find_inputs
from cxr_edge.runtime.errors import UsageError


def uris(*sources):
    return find_inputs([str(source) for source in sources])["uri"].to_pylist()


def test_folders_globs_and_files_have_each_uri_once(tmp_path):
    files = [draw(tmp_path / f"{name}.jpeg", n) for n, name in enumerate("abc")]
    assert (
        uris(tmp_path) == uris(tmp_path / "*.jpeg", tmp_path) == uris(*reversed(files), tmp_path) == [*map(str, files)]
    )
    table = find_inputs([str(files[0])]).to_pylist()[0]
    assert table["size"] == files[0].stat().st_size and table["version"] == str(files[0].stat().st_mtime_ns)


def test_a_name_that_is_not_utf8_has_a_url(tmp_path, run, rows):
    name = os.fsdecode(b"bild\xff.jpeg")
    try:
        (tmp_path / "in").mkdir()
        draw(tmp_path / "a.jpeg", 1).rename(tmp_path / "in" / name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert uris(tmp_path / "in") == [f"file://{tmp_path}/in/bild%FF.jpeg"]
    run(tmp_path / "in", target=tmp_path / "out")
    assert rows(tmp_path / "out")[0]["error_type"] is None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_carries_its_columns_along(run, rows, tmp_path, kind):
    draw(tmp_path / "a.jpeg", 1), draw(tmp_path / "b.jpeg", 2)
    columns = {
        "uri": ["a.jpeg", "b.jpeg"], "study": ["s1", None], "patient": ["p1", "p2"], "label": ["PNEUMONIA", "0"],
        "ward": ["x", "y"], "time": ["2024-05-01T08:00:00Z", "2024-05-02T09:30:00Z"],
    }  # fmt: skip
    manifest = tmp_path / f"manifest.{kind}"
    if kind == "csv":
        lines = [",".join(columns), *(",".join(v or "" for v in row) for row in zip(*columns.values(), strict=True))]
        manifest.write_text("\n".join(lines) + "\n")
    else:
        times = pa.array([datetime.fromisoformat(t.replace("Z", "+00:00")) for t in columns["time"]])
        pq.write_table(pa.table(columns | {"time": times}), manifest)
    run(manifest, target=tmp_path / "out")
    first, second = rows(tmp_path / "out")
    assert (first["uri"], first["study"], first["patient"], first["true_label"]) == (
        str(tmp_path / "a.jpeg"), "s1", "p1", "PNEUMONIA",
    )  # fmt: skip
    assert (second["true_label"], second["label"] in ("NORMAL", "PNEUMONIA")) == ("0", True)
    assert second["time"] == datetime(2024, 5, 2, 9, 30, tzinfo=timezone.utc) and not second["study"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "path,label\na.jpeg,0\n", r"found the columns path, label, expected one named uri"),
        ("m.csv", "uri,time\na.jpeg,yesterday\n", r"m\.csv: cannot be read as a manifest .*yesterday"),
        ("m.csv", "uri,label\n,0\n", r"found 1 rows without a URI"),
        ("m.csv", "", r"m\.csv: cannot be read as a manifest"),
        ("m.parquet", "no parquet", r"m\.parquet: cannot be read as a manifest"),
        ("m.csv", "uri\n", r"found no image files"),
        ("m.txt", "# nothing\n", r"found no image files"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        find_inputs([str(tmp_path / name)])


def test_no_matching_files_and_unknown_places_are_refused(tmp_path):
    for source in (tmp_path, tmp_path / "*.jpeg", tmp_path / "missing.jpeg"):
        with pytest.raises(UsageError, match=r"found no image files, expected radiographs"):
            find_inputs([str(source)])
    with pytest.raises(UsageError, match=r"missing\.csv: not found"):
        find_inputs([str(tmp_path / "missing.csv")])
    with pytest.raises(UsageError, match=r"nosuch://x: cannot be read .*Protocol not known"):
        find_inputs(["nosuch://x"])


def pack(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shard(tmp_path):
    """Three images with labels, one of them broken, in the WebDataset layout."""
    images = [draw(tmp_path / f"{n}.jpeg", n).read_bytes() for n in range(3)]
    about = {"label": "PNEUMONIA", "patient": 7, "study": "s", "time": "2024-01-02"}
    files = {
        "0001.cls": b"0\n",
        "0001.jpeg": images[0],
        "0002.jpeg": images[1],
        "0002.json": json.dumps(about).encode(),
    }
    return pack(tmp_path / "shard.tar", {**files, "readme.md": b"text", "0003.jpeg": images[2][:700]})


def test_members_of_a_tar_file_are_rows_with_their_labels(run, rows, shard, tmp_path):
    run(shard, target=tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["uri"] for row in found] == [f"tar://000{n}.jpeg::{shard}" for n in (1, 2, 3)]
    assert {row["archive"] for row in found} == {str(shard)}
    assert [row["true_label"] for row in found] == ["0", "PNEUMONIA", None]
    assert (found[1]["patient"], found[1]["study"], found[1]["time"].day) == ("7", "s", 2)
    assert [row["error_type"] for row in found] == [None, None, "ImageError"]


def test_a_tar_file_is_scored_again_only_if_it_changed(run, rows, shard, tmp_path):
    out = tmp_path / "out"
    run(shard, target=out)
    assert run(shard, target=out)[0].blocks == ()
    pack(shard, {"0009.jpeg": draw(tmp_path / "9.jpeg", 9).read_bytes()})
    run(shard, target=out)
    assert [row["uri"] for row in rows(out)] == [f"tar://0009.jpeg::{shard}"]


def test_a_damaged_tar_file_keeps_the_rows_before_the_damage(run, rows, shard, tmp_path):
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"0003.jpeg") + 900])
    run(shard, target=tmp_path / "out")
    found = {row["uri"]: row["error_type"] for row in rows(tmp_path / "out")}
    assert found[str(shard)] == "ImageError" and len(found) >= 2
    assert found[f"tar://0001.jpeg::{shard}"] is None


def test_dicom_files_of_a_study_carry_its_uid_and_refused_views_are_errors(run, rows, tmp_path):
    pytest.importorskip("pydicom")
    pytest.importorskip("gdcm")  # dicom_files needs it
    from dicom_files import dicom, radiograph

    (tmp_path / "in").mkdir()
    for name, view in (("IM0001", "PA"), ("IM0002", "LATERAL")):
        elements = {"ViewPosition": view, "StudyInstanceUID": "1.2.3.4", "StudyDate": "20240131"}
        (tmp_path / "in" / name).write_bytes(dicom(radiograph(), **elements))
    run(tmp_path / "in", target=tmp_path / "out")
    frontal, lateral = rows(tmp_path / "out")
    assert frontal["error_type"] is None and "LATERAL" in lateral["error_message"]
    assert frontal["study"] == lateral["study"] == "1.2.3.4" and frontal["time"].month == 1
