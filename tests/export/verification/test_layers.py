"""`verify --layers` names the layer at which a file leaves its reference."""

import json
import shutil

import numpy as np
import pytest
from support import forge

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.verification.layers import LIMITS, measure_layers
from cxr_edge.export.verification.taps import KerasTap, Tensor, open_tap

#: Shape of the third of five convolutions' kernels, as each format stores it.
ONNX_KERNEL, TFLITE_KERNEL = (32, 16, 3, 3), (32, 3, 3, 16)


def perturbed_onnx(path):
    """The file with a twentieth of noise on one layer's weights."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    kernel = next(t for t in model.graph.initializer if tuple(t.dims) == ONNX_KERNEL)
    kernel.CopyFrom(numpy_helper.from_array(noisy(numpy_helper.to_array(kernel)), kernel.name))
    return model.SerializeToString()


def perturbed_tflite(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    index = next(d["index"] for d in interpreter.get_tensor_details() if tuple(d["shape"]) == TFLITE_KERNEL)
    values = interpreter.get_tensor(index)
    content = path.read_bytes()
    assert content.count(values.tobytes()) == 1
    return content.replace(values.tobytes(), noisy(values).tobytes())


def noisy(values):
    noise = np.random.default_rng(0).normal(0, 0.05 * values.std(), values.shape)
    return (values + noise).astype(values.dtype)


@pytest.fixture(scope="module")
def pixels(phantoms):
    return read_pixels(read_dataset(phantoms)[::20])


@pytest.fixture
def keras_tap(run):
    return KerasTap(Run.open(run).network())


@pytest.mark.parametrize("name", ["model.onnx", "model.fp32.tflite"])
def test_a_sound_fp32_file_never_leaves_the_trained_network(bundle, keras_tap, pixels, name):
    report = measure_layers(open_tap(bundle / name), keras_tap, pixels, "fp32", "Keras")
    assert report.first_to_leave is None and report.worst.sqnr > LIMITS["fp32"]
    found = [layer.reference for layer in report.layers]
    assert found == sorted(found, key=[tensor.name for tensor in keras_tap.tensors].index)
    assert {f"relu{block}" for block in range(1, 6)} | {"normalise", "pool", "hidden", "logit"} <= set(found)


@pytest.mark.parametrize("engine", ["onnx", "tflite"])
def test_other_precisions_are_held_against_fp32(bundle, pixels, engine):
    half, exact = (open_tap(bundle / f"model{p}.{engine}") for p in (".fp16", "" if engine == "onnx" else ".fp32"))
    report = measure_layers(half, exact, pixels, "fp16", "fp32")
    assert report.first_to_leave is None and report.worst.sqnr < 120
    assert len(report.layers) >= len(exact.tensors) - 4


def test_int8_tensors_are_read_dequantised(bundle, pixels):
    quantised = open_tap(bundle / "model.int8.tflite")
    report = measure_layers(quantised, open_tap(bundle / "model.fp32.tflite"), pixels, "int8", "fp32")
    convolutions = [layer for layer in report.layers if layer.operator == "CONV_2D"]
    exact, rounded = ([layer for layer in convolutions if (layer.sqnr > 100) is float_] for float_ in (True, False))
    assert exact == convolutions[: len(exact)]  # those of the finest maps, left in float
    assert len(convolutions) == 6 and len(rounded) >= 4 and all(5 < layer.sqnr < 60 for layer in rounded)


def test_quantised_and_dequantised_onnx_is_read_after_the_latter(bundle, pixels, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        images = iter(pixels)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"image": image[np.newaxis]}

    quantize_static(bundle / "model.onnx", tmp_path / "q.onnx", Reader())
    quantised, exact = open_tap(tmp_path / "q.onnx"), open_tap(bundle / "model.onnx")
    report = measure_layers(quantised, exact, pixels, "int8", "model.onnx")
    found = {layer.reference: layer for layer in report.layers}
    first = next(t for t in exact.tensors if t.operator == "Relu")
    values = quantised.run(pixels[:1])
    same_name = next(t for t in quantised.tensors if t.name == first.name)
    assert len(np.unique(values[same_name.name])) <= 256
    # Two tensors are fused away. Of the parts of the novelty, those that are zero on radiographs have no SQNR.
    zero = [name for name, value in exact.run(pixels[:1]).items() if not value.any()]
    assert len(found) >= len(quantised.tensors) - 2 - len(zero)
    # What quantisation leaves of a backbone; a false counterpart would lie far below.
    assert all(30 < found[tensor].sqnr < 60 for tensor in found if "relu" in tensor or "pool" in tensor)
    assert found["probability"].operator == "Sigmoid"


@pytest.mark.parametrize(("name", "perturb"), [("model.onnx", perturbed_onnx), ("model.fp32.tflite", perturbed_tflite)])
def test_the_perturbed_layer_is_the_first_to_leave(cli, bundle, run, phantoms, tmp_path, name, perturb):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    forge(copy, name, perturb(copy / name))
    arguments = ("--data", phantoms, "--run", run, "--limit", 12, "--layers", "--report", tmp_path / "page.html")
    code, out, _ = cli("verify", copy, *arguments, "--format", "json")
    rows = {row["path"]: row["layers"] for row in json.loads(out)["files"]}
    layer = next(layer for layer in rows[name]["layers"] if layer["name"] == rows[name]["first_to_leave"])
    assert code == 1 and layer["reference"] in ("conv3", "relu3") and 10 < layer["sqnr"] < 50
    untouched = "model.onnx" if name != "model.onnx" else "model.fp32.tflite"
    assert rows[untouched]["first_to_leave"] is None
    page = (tmp_path / "page.html").read_text()
    assert layer["name"] in page and "Layer by layer" in page and "data:image/png;base64" in page


def test_a_perturbed_layer_is_on_standard_output_with_its_neighbours(cli, bundle, run, phantoms, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    forge(copy, "model.onnx", perturbed_onnx(copy / "model.onnx"))
    _, out, _ = cli("verify", copy, "--data", phantoms, "--run", run, "--limit", 4, "--layers")
    assert "model.onnx: leaves trained network (Keras) at" in out and "SQNR" in out
    assert "model.fp32.tflite: all" in out


class Listed:
    """A graph with given values."""

    def __init__(self, **values):
        self.values = values
        names = list(values)
        self.tensors = [Tensor(n, "Conv", (names[i - 1],) if i else ()) for i, n in enumerate(names)]

    def run(self, image):
        return {name: value + image[0, 0, 0, 0] for name, value in self.values.items()}


def test_sqnr_and_loss_are_their_formulas_in_any_layout():
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (1, 6, 5, 4)), random.normal(0, 1, (1, 6, 5, 4))
    noise = random.normal(0, 1, a.shape)
    noise *= np.linalg.norm(a) / np.linalg.norm(noise)
    images = np.zeros((3, 1, 1, 1), np.uint8)
    file = Listed(first=(a + 0.01 * noise).transpose(0, 3, 1, 2), extra=np.ones((1, 9)), second=b + 0.1 * b)
    report = measure_layers(file, Listed(x=a, y=b), images, "fp16", "float")
    first, second = report.layers
    assert (first.name, first.reference, second.name, second.reference) == ("first", "x", "second", "y")
    assert first.sqnr == pytest.approx(40) and second.sqnr == pytest.approx(20)
    assert first.loss is None and second.loss == pytest.approx(20)
    assert report.first_to_leave is second
