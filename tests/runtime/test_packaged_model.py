"""The model that ships inside the package."""

import numpy as np
import pytest
from support import LITERT, ONNX, SHARED, needs_shared

from cxr_edge.runtime import Bundle, load
from cxr_edge.runtime.predictor import packaged_model


def test_it_is_whole_small_and_says_what_it_is():
    bundle = Bundle.open(packaged_model())
    for file in bundle.manifest.files:
        bundle.check(file)
        assert bundle.verified(file) is True
    assert sum(file.bytes for file in bundle.manifest.files) <= 16e6
    assert {"onnx", "litert"} <= {file.engine for file in bundle.manifest.files}
    assert "not a medical device" in (bundle.folder / "MODEL_CARD.md").read_text()


def test_its_manifest_holds_no_path_of_the_machine_that_made_it():
    text = (packaged_model() / "manifest.json").read_text()
    assert '"/' not in text and "../../../../.." not in text


@needs_shared
@pytest.mark.parametrize("engine", [ONNX, LITERT])
def test_it_decides_on_originals_as_on_what_it_was_trained_on(engine):
    """Decode, resize and decide on files as users will meet them, most of them trained on at the network's size."""
    predictor = load(engine=engine)
    originals = sorted((SHARED / "data" / "originals").rglob("*.jpeg"))
    copies = {path.name: path for path in (SHARED / "data" / "chest_xray").rglob("*.jpeg")}
    small = [copies[path.name] for path in originals]
    found, expected = (np.array([p.label for p in predictor.predict_many(paths)]) for paths in (originals, small))
    assert np.mean(found == expected) >= 23 / 24
    assert np.mean(found == [path.parent.name for path in originals]) >= 22 / 24
