import numpy as np
import pytest
from support import Lazy

from cxr_edge.train.data.halves import join, middle
from cxr_edge.train.data.masks import LungMasks

training = Lazy("cxr_edge.train.data.batches")


def test_the_middle_lies_between_the_lungs():
    lungs = np.zeros((10, 100), bool)
    assert middle(lungs) == 50
    lungs[2:8, 20:40] = lungs[2:8, 65:85] = True
    assert middle(lungs) == 52
    lungs[:, 45:] = False
    assert middle(lungs) == 35, "one lung alone must not put the middle into itself"


def test_halves_meet_at_their_middles():
    image, other = (np.tile(np.arange(6, dtype=np.uint8)[None, :, None] + base, (2, 1, 1)) for base in (0, 100))
    kept = np.array([True] * 3 + [False] * 3)
    assert join(image, other, kept, 0)[0, :, 0].tolist() == [0, 1, 2, 103, 104, 105]
    assert join(image, other, kept, 1)[0, :, 0].tolist() == [0, 1, 2, 102, 103, 104]
    assert join(image, other, kept, -1)[0, :, 0].tolist() == [0, 1, 2, 104, 105, 105]
    assert join(image, other, ~kept, 2)[0, :, 0].tolist() == [100, 100, 100, 3, 4, 5]


#: Four normal radiographs with the gray levels 0 to 3, and four pneumonias with 4 to 7; the last of each has no mask.
LABELS = np.repeat([0, 1], 4)
KNOWN = np.arange(8) % 4 < 3


def batches(halves, labels=LABELS, known=KNOWN, **options):
    pixels = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], (8, 8, 20, 1))
    lungs = np.zeros_like(pixels)
    lungs[known, 2:6, 2:18] = 255
    return training.RadiographBatches(pixels, labels, 8, 0, masks=LungMasks(lungs, known), halves=halves, **options)


def drawn(made, epochs=40):
    """Pixels, target and weight of every radiograph of some epochs."""
    for epoch in range(epochs):
        made.epoch = epoch
        made.on_epoch_begin()
        (pixels, _), targets, weights = made[0]
        yield from zip(pixels, targets[:, 0], weights, strict=True)


def test_a_pneumonia_in_one_half_makes_a_pneumonia_with_its_evidence_there():
    mixed = 0
    for pixels, target, weight in drawn(batches(1.0)):
        left, right = pixels[0, 0, 0], pixels[0, -1, 0]
        classes = LABELS[[left, right]]
        assert target == classes.max()
        lungs, evidence = (pixels[3, [5, 15], channel] > 0 for channel in (1, 2))
        if left != right:
            assert KNOWN[[left, right]].all() and lungs.all()
            middles = np.flatnonzero(np.diff(pixels[0, :, 0].astype(int)))
            assert middles.tolist() == [9], "one seam, at the middle between the lungs"
        if classes[0] != classes[1]:
            mixed += 1
            assert weight == np.float32(training.UNSURE_WEIGHT)
            np.testing.assert_array_equal(evidence, classes == 1)
        else:
            assert weight == 1
            np.testing.assert_array_equal(evidence, lungs)
    assert mixed > 50


def test_a_share_of_the_radiographs_is_joined_on_either_side():
    joined = [pixels[0, 0, 0] != pixels[0, -1, 0] for pixels, *_ in drawn(batches(0.5), 100)]
    # Half of the three in four that have a mask; one in six partners is the radiograph itself.
    assert np.mean(joined) == pytest.approx(0.5 * 0.75 * 5 / 6, abs=0.05)
    assert not any(pixels[0, 0, 0] != pixels[0, -1, 0] for pixels, *_ in drawn(batches(0.0), 5))


@pytest.mark.parametrize("halves", [0.0, 1.0], ids=["validation", "training"])
def test_without_any_mask_in_a_part_nothing_is_joined(halves):
    drawn_without = list(drawn(batches(halves, known=np.zeros(8, bool)), 2))
    assert len(drawn_without) == 16
    for pixels, target, weight in drawn_without:
        assert np.ptp(pixels[..., 0]) == 0 and not pixels[..., 1:].any()
        assert target == LABELS[pixels[0, 0, 0]] and weight == 1


def test_joined_radiographs_depend_on_seed_and_epoch_only():
    one, two = batches(0.5), batches(0.5)
    for made in (one, two):
        made.epoch = 3
        made.on_epoch_begin()
    two[0]
    for a, b in zip(one[0][0], two[0][0], strict=True):
        np.testing.assert_array_equal(a, b)
    two.epoch = 4
    assert not np.array_equal(one[0][0][0], two[0][0][0])


def test_class_weights_count_for_joined_radiographs_too():
    plain, weighted = (
        np.array(
            [weight for *_, weight in drawn(batches(1.0, labels=np.repeat([0, 1], [2, 6]), class_weights=weigh), 5)]
        )
        for weigh in (False, True)
    )
    # 8 / (2 · 2) for a normal radiograph, 8 / (2 · 6) for a pneumonia
    assert set(np.round(weighted / plain, 4)) == {np.float32(2.0), np.round(np.float32(2 / 3), 4)}
