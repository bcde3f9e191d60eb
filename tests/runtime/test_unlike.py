"""`unlike`: the kind of outlier that an image resembles."""

import numpy as np
import pytest

from cxr_edge.runtime import load
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.prediction import kind_of

KINDS = ("adult", "turned", "CT slice")


def beyond(*parts):
    return np.array(parts, np.float32)


@pytest.mark.parametrize(
    ("parts", "novelty", "expected"),
    [
        ((9, 1, 0), 10, "adult"),
        ((1, 9, 0), 10, "turned"),
        ((6, 0, 6), 9, "adult"),  # together they explain more than half, and the first one is named
        ((5, 0, 0), 10, "unknown"),  # the rest, which belongs to no kind, explains more
        ((0, 0, 0), 10, "unknown"),
    ],
)
def test_the_largest_part_names_the_kind_if_the_kinds_explain_the_novelty(parts, novelty, expected):
    assert kind_of(beyond(*parts), novelty, KINDS) == expected


def test_a_model_without_named_kinds_calls_a_stranger_unknown():
    assert kind_of(beyond(), 10, ()) == "unknown"


def test_a_radiograph_resembles_no_kind_and_a_blank_image_does(xray):
    predictor = load()
    radiograph, blank = predictor.predict(xray), predictor.predict(np.zeros((300, 300), np.uint8))
    assert radiograph.in_distribution == (radiograph.unlike is None)
    assert not blank.in_distribution and blank.unlike in ("unknown", *predictor.manifest.novelty_kinds)
    assert blank.to_dict()["unlike"] == blank.unlike


def test_batches_keep_the_parts_of_files_that_have_them():
    def outputs(count, unlike):
        ones = np.ones(count, np.float32)
        return Outputs(ones, ones, np.ones((count, 2, 2), np.float32), ones, unlike)

    given = Outputs.concatenate([outputs(2, np.zeros((2, 3))), outputs(1, np.ones((1, 3)))])
    assert given.unlike.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert given.take(np.array([2])).unlike.tolist() == [[1, 1, 1]]
    lacking = Outputs.concatenate([outputs(2, None), outputs(1, None)])
    assert lacking.unlike is None and lacking.take(np.array([0])).unlike is None
