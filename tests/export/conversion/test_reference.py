"""The manifest carries what the runtime says about the hold-out."""

import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset
from cxr_edge.common.run import Run
from cxr_edge.runtime import load
from cxr_edge.runtime.bundles.bundle import Bundle


def test_the_reference_is_what_the_runtime_says_about_the_hold_out(run, bundle, phantoms):
    trained, manifest = Run.open(run), Bundle.open(bundle).manifest
    assert manifest.reference is not None and manifest.reference == trained.reference
    assert manifest.reference.part == "hold-out" and "reference" not in manifest.training
    images = [image for image in read_dataset(phantoms) if image.key in trained.holdout_files]
    found = list(load(bundle, engine="onnx", precision="fp32").predict_many([image.path for image in images]))
    for label, each in enumerate(manifest.reference.classes):
        said = [p for p, image in zip(found, images, strict=True) if image.label == label]
        assert each.images == len(said) > 0
        for name in ("logit", "novelty"):
            quantiles = np.quantile([getattr(p, name) for p in said], np.linspace(0, 1, 101))
            assert getattr(each, name) == pytest.approx(quantiles, abs=0.01, rel=0.002)
        assert each.novel == sum(not p.in_distribution for p in said)
        assert each.lungs_missed is None and each.evidence_in_lungs is None  # this model does not find the lungs
