from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.dataset import read_dataset
from cxr_edge.common.metrics import Cases
from cxr_edge.common.run import Run
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry
from cxr_edge.runtime.errors import UsageError
from cxr_edge.train.data.masks import find_masks
from cxr_edge.train.data.phantom import write_dataset
from cxr_edge.train.evaluation.evidence import dice_scores, measure_evidence
from cxr_edge.train.evaluation.subject import open_subject
from cxr_edge.train.fit import models
from cxr_edge.train.fit.config import Part, TrainConfig
from cxr_edge.train.fit.training import train

keras = Lazy("keras")
augment = Lazy("cxr_edge.train.fit.augment.recipe")
loop = Lazy("cxr_edge.train.fit.loop")
lungs = Lazy("cxr_edge.train.fit.lungs")

SIZE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Phantoms and their masks."""
    folder = tmp_path_factory.mktemp("lungs")
    list(write_dataset(folder / "data", patients=20, seed=0, masks=folder / "masks"))
    return folder


def part_of(data, size=SIZE) -> Part:
    images = read_dataset(data / "data", ("train",))
    return Part.read(images, size, find_masks(data / "masks", images))


def task_of(network, weight=1.0) -> lungs.LungTask:
    places = lungs.places_of_cells(HeatmapGeometry(32.0, 15.5), SIZE, 2)
    return lungs.LungTask(network.get_layer("hidden"), network.get_layer("logit"), places, weight)


def losses_of(task, network, part, known) -> list[float]:
    parts = keras.Model(
        network.inputs[0], [*network.outputs, network.get_layer("pool").input, network.get_layer("hidden").output]
    )
    task(*parts(part.pixels.astype("float32")), part.masks.pixels, np.float32(known)[:, None], training=True)
    return [float(loss) for loss in task.losses]


def test_the_penalty_is_the_share_of_the_drawn_heatmap_outside_the_lungs(data):
    """Against Grad-CAM by the closed form in numpy, drawn over the whole image."""
    keras.utils.set_random_seed(3)
    part = part_of(data)
    network = models.build("cnn", "none", SIZE, lungs=True)
    (kernel, bias), last = network.get_layer("hidden").get_weights(), network.get_layer("logit").get_weights()[0][:, 0]
    features = keras.Model(network.inputs[0], network.get_layer("pool").input).predict(part.pixels, verbose=0)
    active = features.mean(axis=(1, 2)) @ kernel + bias > 0
    maps = np.maximum(np.einsum("nhwk,kj,nj->nhw", features, kernel, active * last), 0) / 4
    shares = []
    places = lungs.places_of_cells(HeatmapGeometry(32.0, 15.5), SIZE, 2).T.reshape(4, SIZE, SIZE)
    for heatmap, inside in zip(maps, part.masks.pixels[..., 0] > 0, strict=True):
        heat = np.tensordot(heatmap.ravel(), places, 1) * 4 / SIZE**2
        shares.append(heat[~inside].sum() / (heat.sum() + 0.5))
    _, outside = losses_of(task_of(network), network, part, np.ones(len(part.images)))
    assert outside == pytest.approx(np.mean(shares), rel=1e-4) and 0 < outside < 1


def test_the_loss_of_the_lungs_is_cross_entropy_and_dice_of_shares(data):
    mask = part_of(data).masks.pixels[:1].astype(np.float32) / 255
    share = mask.reshape(1, 8, 8, 8, 8, 1).mean(axis=(2, 4))
    found = np.clip(share, 0.01, 0.99)

    def loss(found):
        return float(lungs.lung_loss(np.log(found / (1 - found)), mask)[0])

    dice = (2 * (found * share).sum() + 1) / ((found**2).sum() + (share**2).sum() + 1)
    entropy = -(share * np.log(found) + (1 - share) * np.log(1 - found)).mean()
    assert loss(found) == pytest.approx(entropy + 1 - dice, rel=1e-4)
    rounded = np.clip(np.round(share), 0.01, 0.99)
    assert loss(found) < loss(rounded) < loss(1 - found)


def test_fitting_the_decoder_finds_the_lungs_and_leaves_the_decision(data, monkeypatch):
    keras.utils.set_random_seed(0)
    network, part = models.build("cnn", "none", SIZE, lungs=True), part_of(data)
    some = replace(part.masks, known=np.arange(len(part.images)) % 4 > 0)
    logit, before = network.predict(part.pixels, verbose=0)
    # A decoder on random features needs about as many steps as one on thousands of radiographs.
    for name, value in (("EPOCHS", 40), ("BATCH", 4), ("RATE", 1e-2)):
        monkeypatch.setattr(f"cxr_edge.train.fit.lungs.DECODER_{name}", value)
    lungs.fit_decoder(network, part.pixels, some, seed=0)
    same, after = network.predict(part.pixels, verbose=0)
    np.testing.assert_array_equal(same, logit)
    dice = [dice_scores(1 / (1 + np.exp(-found[..., 0])), part.masks.pixels[..., 0] > 0) for found in (before, after)]
    assert dice[1][~some.known].mean() > 0.6 > dice[0].mean()
    assert all(layer.trainable for layer in network.layers)


def test_fitting_the_decoder_leaves_the_fixed_filter_of_the_input_fixed(data):
    network, part = models.build("cnn", "none", SIZE, lungs=True, smooth=True), part_of(data)
    filters, fixed = network.get_layer("smooth").get_weights(), [layer.trainable for layer in network.layers]
    lungs.fit_decoder(network, part.pixels, part.masks, seed=0)
    np.testing.assert_array_equal(network.get_layer("smooth").get_weights(), filters)
    assert [layer.trainable for layer in network.layers] == fixed and not all(fixed)


def test_only_radiographs_with_a_mask_count(data):
    part = part_of(data)
    network = models.build("cnn", "none", SIZE, lungs=True)
    known = np.arange(len(part.images)) % 2
    some = losses_of(task_of(network), network, part, known)
    part.masks.pixels[known == 0] = 0
    assert losses_of(task_of(network), network, part, known) == pytest.approx(some)
    assert losses_of(task_of(network), network, part, known * 0) == [0, 0]
    assert len(losses_of(task_of(network, weight=0.0), network, part, known)) == 1


def test_the_penalty_counts_the_places_where_evidence_may_lie(data):
    keras.utils.set_random_seed(3)  # as above; with some first weights a heatmap has no evidence at all
    part = part_of(data)
    network, known = models.build("cnn", "none", SIZE, lungs=True), np.ones(len(part.images))
    found, outside = losses_of(task_of(network), network, part, known)
    allowed = part.masks.pixels.copy()
    allowed[:, :, SIZE // 2 :] = 0
    both = np.concatenate([part.masks.pixels, allowed], axis=-1)
    half = replace(part, masks=replace(part.masks, pixels=both))
    found_again, outside_half = losses_of(task_of(network), network, half, known)
    assert found_again == pytest.approx(found) and outside_half > outside


def test_masks_move_with_the_radiograph_and_keep_their_brightness(data):
    part = part_of(data)
    picture = np.repeat(part.masks.pixels[..., :1], 3, axis=-1)
    moved = np.asarray(augment.augmentation(0, crop_area=0.3)(picture, training=True))
    assert ((moved[..., 1:] < 1) | (moved[..., 1:] > 254)).mean() > 0.9  # a bilinear edge is between
    np.testing.assert_array_equal(moved[..., 1], moved[..., 2])
    for radiograph, mask, before in zip(moved[..., 0], moved[..., 1], picture[..., 0], strict=True):
        if mask.std() > 20 and radiograph.std() > 20:  # a crop may hold lung only
            assert np.corrcoef(radiograph.ravel(), mask.ravel())[0, 1] > 0.5
        assert mask.max() <= before.max()
    assert np.abs(moved[..., 1] - picture[..., 1]).max(axis=(1, 2)).astype(bool).mean() > 0.5


def test_the_head_phase_trains_the_decoder_and_not_the_backbone():
    network = models.build("cnn", "none", SIZE, lungs=True)
    loop.set_trainable(network, head_only=True, norms=True)
    trained = {layer.name for layer in network.layers if layer.trainable and layer.weights}
    assert {"hidden", "logit", "lungs", "lungs_last"} <= trained and not trained & {"conv1", "bn1", "conv5"}


@pytest.mark.slow
def test_training_with_masks_finds_the_lungs_and_takes_the_evidence_from_there(data, tmp_path):
    config = TrainConfig(
        "cnn", "none", size=160, epochs=25, batch_size=8, learning_rate=1e-3, val_fraction=0.2, augment=False
    )
    record = train(data / "data", tmp_path / "run", config, masks=data / "masks")
    assert record["config"]["lungs"] is True and record["lungs"] == {"height": 20, "width": 20}
    assert record["masks"]["images"] == len(list((data / "masks").glob("*/*")))
    network = Run.open(tmp_path / "run").network()
    assert [tuple(output.shape) for output in network.outputs] == [(None, 1), (None, 20, 20, 1)]
    found = evidence_of(tmp_path / "run", data)
    pneumonia = found.places[-1]
    # Without the penalty, the same training gives 0.38 in the lungs, and the hottest point in their hull in 0.09. The
    # penalty is on the lungs themselves. A cell of this network is as wide as a lung, so some evidence stays outside.
    assert pneumonia.in_lungs.value > 0.6 > 2 * found.lung_area and pneumonia.peak_in_hull.value > 0.9
    assert found.dice.value > 0.7


def evidence_of(run, data):
    subject = open_subject(run)
    part = part_of(data, subject.input.height)
    outputs = subject.run(part.pixels)
    patients = np.array([image.path.stem for image in part.images])
    cases = Cases(part.labels, outputs.logit, np.ones_like(outputs.probability), patients)  # all count as found
    return measure_evidence(subject, part.pixels, cases, outputs, part.masks)


def test_dice_is_one_for_the_mask_itself_and_zero_beside_it():
    mask = np.zeros((2, 64, 64), bool)
    mask[:, 16:48, 16:48] = True
    small = cv2.resize(mask[0].astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA)
    scores = dice_scores(np.stack([small, 1 - small]), mask)
    assert scores[0] > 0.9 and scores[1] < 0.15
    assert dice_scores(np.zeros((1, 8, 8), np.float32), np.zeros((1, 64, 64), bool)) == [1]


def test_options_that_do_not_fit_masks_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match="--mixup"):
        train(data / "data", tmp_path / "run", TrainConfig("cnn", "none", mixup=0.2), masks=data / "masks")
    with pytest.raises(UsageError, match="--halves"):
        train(data / "data", tmp_path / "run", TrainConfig("cnn", "none", halves=0.25))
    with pytest.raises(UsageError, match="--border-crop"):
        models.build("cnn", "none", border_crop=0.1, lungs=True)
