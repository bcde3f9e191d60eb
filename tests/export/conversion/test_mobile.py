"""What an app gets: metadata, golden inputs, the variant for MediaPipe, and nothing but built-in operators."""

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import forge

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.conversion import tflite
from cxr_edge.export.conversion.build import build_bundle
from cxr_edge.export.conversion.formats import FILES
from cxr_edge.export.conversion.graph import deployment_model
from cxr_edge.export.conversion.mediapipe import classifier_model, to_gray
from cxr_edge.runtime import Bundle, BundleError, load
from cxr_edge.runtime.bundles.bundle import Manifest, sha256

MEDIAPIPE = "model.mediapipe.tflite"
TFLITE = [*(name for name in FILES if name.endswith(".tflite")), MEDIAPIPE]
#: Reads a file's metadata and classifies images; runs where MediaPipe is installed, and nothing of this project.
READER = Path(__file__).with_name("mediapipe_reader.py")


@pytest.fixture(scope="module")
def mobile(run, phantoms, tmp_path_factory) -> Path:
    """A bundle of all TFLite files, of a network that tells images apart and whose heatmaps are not empty.

    The chain's own hardly does, after a few epochs: the weights of its last layer are made positive and larger.
    """
    import keras

    sharp = shutil.copytree(run, tmp_path_factory.mktemp("mobile") / "run")
    network = keras.models.load_model(sharp / "model.keras", compile=False)
    last = network.get_layer("logit")
    last.set_weights([abs(last.get_weights()[0]), np.zeros(1)])
    logits = np.ravel(network(read_pixels(read_dataset(phantoms, ("test",))).astype(np.float32)))
    scale = 3 / logits.std()
    last.set_weights([scale * last.get_weights()[0], np.array([-scale * np.median(logits)])])
    network.save(sharp / "model.keras")
    facts = {"model_sha256": sha256(sharp / "model.keras"), "temperature": 1.0}  # the scale above is its temperature
    record = json.loads((sharp / "run.json").read_text()) | facts
    (sharp / "run.json").write_text(json.dumps(record))
    build_bundle(sharp, sharp.parent / "bundle", phantoms, TFLITE, 32, step=lambda name: None)
    return sharp.parent / "bundle"


@pytest.fixture(scope="module")
def mediapipe() -> Path:
    """Python of an environment of its own with MediaPipe, kept between runs: it takes half a minute and 540 MB."""
    for library in ("libEGL.so.1", "libGLESv2.so.2"):
        try:
            ctypes.CDLL(library)
        except OSError:
            pytest.skip(f"MediaPipe needs {library} (Debian: libegl1, libgles2)")
    folder = (
        Path(tempfile.gettempdir()) / f"cxr-edge-mediapipe-1.2.2-py{sys.version_info.major}{sys.version_info.minor}"
    )
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "mediapipe==1.2.2"]
        if subprocess.run(install).returncode:
            shutil.rmtree(folder)
            pytest.skip("MediaPipe cannot be installed here: no package index, or no wheel for this Python")
        (folder / "installed").touch()
    return folder / "bin" / "python"


def read(mediapipe, *arguments):
    done = subprocess.run([mediapipe, READER, *map(str, arguments)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TFLITE)
def test_only_built_in_operators(mobile, name):
    from tensorflow.lite.python.schema_py_generated import BuiltinOperator
    from tensorflow.lite.tools.flatbuffer_utils import read_model

    codes = read_model(str(mobile / name)).operatorCodes
    assert len(codes) > 5
    assert not [code for code in codes if code.customCode or code.builtinCode == BuiltinOperator.CUSTOM]


def test_standard_readers_see_the_metadata(mediapipe, mobile):
    for name in TFLITE:
        metadata = read(mediapipe, "metadata", mobile / name)
        assert "chest radiographs" in metadata["name"] and "not a medical device" in metadata["description"]
        assert "manifest.json" in metadata["files"] and metadata["license"] and not metadata["author"]
        (image,) = metadata["inputs"]
        assert image == {
            "name": "image",
            "color_space": "RGB" if name == MEDIAPIPE else "GRAYSCALE",
            "normalization": [[0.0, 1.0]],
            "range": [0.0, 255.0],
        }
        outputs = {output["name"]: output for output in metadata["outputs"]}
        assert all(output["description"] for output in outputs.values())
        if name == MEDIAPIPE:
            assert outputs["scores"]["labels"] == ["labels.txt"]
        else:
            # Readers go by the order in the graph: each name must lie on the tensor that it describes.
            assert {o: len(v["shape"]) for o, v in outputs.items()} == {
                "probability": 1, "logit": 1, "heatmap": 3, "novelty": 1, "unlike": 2,
            }  # fmt: skip
        with zipfile.ZipFile(mobile / name) as archive:
            assert archive.read("labels.txt") == b"NORMAL\nPNEUMONIA\n"
            assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_mediapipe_gives_our_probabilities(mediapipe, mobile, phantoms, tmp_path):
    """On images of the network's size; MediaPipe's own resizing, bilinear, is not ours (docs/mobile.md)."""
    images = sorted(phantoms.glob("train/*/*.jpeg"))[::5]
    predictor = load(mobile, "litert", "fp32")
    for path in images:
        gray = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (224, 224), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(tmp_path / f"{path.stem}.png"), gray)
    pictures = sorted(tmp_path.glob("*.png"))
    ours = np.array([predictor.predict(path).probability for path in pictures])
    assert len(ours) >= 10 and ours.max() - ours.min() > 0.2
    scores = read(mediapipe, "classify", mobile / MEDIAPIPE, *pictures)
    assert all(score.keys() == {"NORMAL", "PNEUMONIA"} for score in scores)
    np.testing.assert_allclose([score["PNEUMONIA"] for score in scores], ours, atol=1e-5)
    np.testing.assert_allclose([score["NORMAL"] for score in scores], 1 - ours, atol=1e-5)


def test_gray_in_the_graph_is_opencvs():
    import keras
    from ai_edge_litert.interpreter import Interpreter

    image = keras.Input((224, 224, 3), dtype="uint8", name="image")
    flatbuffer = tflite.tflite_from_keras(keras.Model(image, {"gray": to_gray(image)}), "fp32")
    run = Interpreter(model_content=flatbuffer).get_signature_runner()
    colours = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3), dtype=np.uint8)
    colours[0, ..., 1:] = colours[0, ..., :1]  # three equal channels
    for picture in colours:
        gray = run(image=picture[np.newaxis])["gray"][0, ..., 0]
        np.testing.assert_array_equal(gray, cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    np.testing.assert_array_equal(run(image=colours[:1])["gray"][..., 0], colours[:1, ..., 0])


def test_a_companion_is_never_taken_for_a_file_that_decides(mobile, cli, xray):
    manifest = Bundle.open(mobile).manifest
    assert [file.path for file in manifest.companions] == [MEDIAPIPE]
    assert [file.path for file in manifest.files] == TFLITE[:-1]
    assert Bundle.open(mobile).check(manifest.companions[0]).name == MEDIAPIPE
    with pytest.raises(BundleError, match="other clients"):
        load(mobile / MEDIAPIPE)
    with zipfile.ZipFile(mobile / MEDIAPIPE) as archive:
        inside = Manifest.from_json(archive.read("manifest.json"), MEDIAPIPE)
    assert inside.input.channels == 3 and inside.operating_points == manifest.operating_points


def test_verify_holds_the_companion_to_the_network(cli, mobile, phantoms, tmp_path):
    """A sound one passes by its probability alone; one whose scores stand in the wrong order fails by the decisions."""
    import keras

    def verdict():
        # The other files of this sharpened network are not what is tested here.
        gates = tmp_path / "gates.toml"
        gates.write_text("[fp16]\nflip_rate = 1\nprobability_max = 1\n[int8]\nflip_rate = 1\nauc_drop = 1\n"
                         "sensitivity_drop = 1\nheatmap_rank_correlation = -1\n")  # fmt: skip
        options = ("--run", mobile.parent / "run", "--gates", gates, "--report", tmp_path / "page.html")
        code, out, err = cli("verify", folder, "--data", phantoms, *options, "--format", "json")
        (row,) = (row for row in json.loads(out)["files"] if row["path"] == MEDIAPIPE)
        return code, row, err

    folder = shutil.copytree(mobile, tmp_path / "bundle")
    code, row, err = verdict()
    assert code == 0, err
    assert row["probability_max"] <= 1e-5 and set(row["flips"].values()) == {0} and row["auc_delta"] == 0
    assert row["logit_max"] is row["novelty_flips"] is row["heatmap_rank_correlation"] is row["heatmap_iou"] is None
    assert {check["name"] for check in row["checks"]} == {"probability_max", "flip_rate"}

    run = Run.open(mobile.parent / "run")
    right = classifier_model(deployment_model(run.network(), run.temperature, run.novelty, "float32"))
    wrong = keras.Model(right.input, {"scores": right.output["scores"][:, ::-1]})
    forge(folder, MEDIAPIPE, tflite.tflite_from_keras(wrong, "fp32"))
    code, row, _ = verdict()
    assert code == 1 and row["flipped"]
    assert {check["name"] for check in row["checks"] if not check["passed"]} == {"probability_max", "flip_rate"}
    assert row["flipped"][0]["image"] in (tmp_path / "page.html").read_text()


def test_export_writes_the_companion_when_named(cli, run, tmp_path):
    code, out, _ = cli("export", run, "-o", tmp_path / "b", "--file", MEDIAPIPE)
    assert code == 0 and MEDIAPIPE in out
    assert MEDIAPIPE in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def golden_runner(mobile, name):
    """As an app would: the file, the bytes, the signature; none of our runtime."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(mobile / name)).get_signature_runner("serving_default")
    return lambda pixels: {key: value[0] for key, value in run(image=pixels).items()}


def deviates(outputs, expected):
    return [
        key
        for key, tolerance in expected["tolerance"].items()
        if np.abs(outputs[key] - np.array(expected["outputs"][key])).max() > tolerance
    ]


def expectations(mobile):
    golden = json.loads((mobile / "golden" / "golden.json").read_text())
    assert set(golden["files"]) == {f.path for f in Bundle.open(mobile).manifest.files if f.engine == "litert"}
    for path, file in golden["files"].items():
        for name, outputs in file["outputs"].items():
            raw = (mobile / "golden" / f"{name}.bin").read_bytes()
            pixels = np.frombuffer(raw, np.uint8).reshape(1, 224, 224, 1)
            yield path, pixels, {"outputs": outputs, "tolerance": file["tolerance"]}


def test_files_give_the_golden_outputs(mobile):
    rows = list(expectations(mobile))
    assert len(rows) == 9
    for path, pixels, expected in rows:
        assert not deviates(golden_runner(mobile, path)(pixels), expected)


def test_golden_pictures_are_what_the_raw_bytes_hold(mobile):
    pictures = sorted((mobile / "golden").glob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        gray = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
        assert gray.shape == (224, 224) and gray.tobytes() == picture.with_suffix(".bin").read_bytes()


MISTAKES = {
    "normalised": lambda pixels: (pixels / 255).astype(np.uint8),
    "signed": lambda pixels: (pixels.astype(np.int16) - 128).astype(np.int8).view(np.uint8),
    "inverted": lambda pixels: 255 - pixels,
    "transposed": lambda pixels: pixels.swapaxes(1, 2).copy(),
    "mirrored": lambda pixels: pixels[:, :, ::-1].copy(),
    "upside down": lambda pixels: pixels[:, ::-1].copy(),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_golden_outputs_tell_a_file_fed_wrongly(mobile, mistake):
    for path in TFLITE[:-1]:
        run = golden_runner(mobile, path)
        rows = [(pixels, expected) for name, pixels, expected in expectations(mobile) if name == path]
        assert any(deviates(run(MISTAKES[mistake](pixels)), expected) for pixels, expected in rows), path
