import json
import sys

import pytest

from cxr_edge.runtime.imaging import dicom
from cxr_edge.runtime.imaging.dicom_samples import SAMPLES


def dicom_rows(cli):
    code, out, _ = cli("doctor", "--format", "json")
    found = json.loads(out)
    rows = found if isinstance(found, list) else found["rows"]
    return code, {row["check"]: row for row in rows if row["check"].startswith("DICOM")}


def block(monkeypatch, package):
    for module in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    from cxr_edge.runtime.imaging.dicom_pixels import _gdcm

    _gdcm.cache_clear()


@pytest.mark.slow
def test_every_transfer_syntax_opens(cli):
    pytest.importorskip("pydicom")
    pytest.importorskip("gdcm")
    _, rows = dicom_rows(cli)
    assert list(rows) == ["DICOM"]
    assert rows["DICOM"]["state"] == "ok"
    assert rows["DICOM"]["detail"].count(",") + 1 == len(SAMPLES) == 15


def test_without_gdcm_what_needs_it_is_absent_with_the_command(cli, monkeypatch):
    pytest.importorskip("pydicom")
    block(monkeypatch, "gdcm")
    code, rows = dicom_rows(cli)
    assert rows["DICOM"]["state"] == "ok" and "Explicit VR Little Endian" in rows["DICOM"]["detail"]
    lossless = rows["DICOM JPEG Lossless"]
    assert (lossless["state"], lossless["detail"]) == ("absent", "pip install 'cxr-edge[dicom]'")
    assert code == 0


def test_without_pydicom_one_row_says_so(cli, monkeypatch):
    block(monkeypatch, "pydicom")
    code, rows = dicom_rows(cli)
    assert list(rows) == ["DICOM"] and rows["DICOM"]["state"] == "absent"
    assert rows["DICOM"]["detail"] == "pip install 'cxr-edge[dicom]'"
    assert code == 0


def test_a_decoder_that_gives_wrong_pixels_is_a_failure(cli, monkeypatch):
    pytest.importorskip("pydicom")
    pytest.importorskip("gdcm")
    decode = dicom.decode_dicom
    monkeypatch.setattr(dicom, "decode_dicom", lambda data, name: 255 - decode(data, name))
    code, rows = dicom_rows(cli)
    assert rows["DICOM"]["state"] == "failed" and rows["DICOM"]["detail"] == "opens nothing"
    assert "wrong pixels" in rows["DICOM JPEG Lossless"]["detail"]
    assert code == 1
