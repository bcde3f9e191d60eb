"""The training recipe: phases, loss, learning rate, and the choice of the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from cxr_edge.train.data.batches import RadiographBatches, spread
from cxr_edge.train.fit.augment.recipe import PairMix, augmentation, unchanged
from cxr_edge.train.fit.callbacks import EpochProgress, KeepFreedMemory, StopOnNaN
from cxr_edge.train.fit.geometry import GEOMETRY_IMAGES, heatmap_geometry
from cxr_edge.train.fit.lungs import is_decoder, with_lung_task

if TYPE_CHECKING:
    from cxr_edge.runtime.bundles.bundle import HeatmapGeometry
    from cxr_edge.train.fit.config import Part, TrainConfig
    from cxr_edge.train.fit.distribute import Replicas
    from cxr_edge.train.fit.resume import TrainingState

#: Batch size of validation.
VALIDATION_BATCH = 64
#: Learning rate of the head on the frozen backbone.
HEAD_LEARNING_RATE = 1e-3
#: The learning rate rises over at most this many steps, from its peak divided by `WARMUP_DIVISOR`.
WARMUP_STEPS, WARMUP_DIVISOR = 100, 20
#: Share of its peak at which the cosine schedule ends.
COSINE_END = 0.02
WEIGHT_DECAY = 1e-4
#: EMA momentum per step: the average spans about the last 50 steps.
EMA_MOMENTUM = 0.98


@dataclass(frozen=True)
class Phase:
    """Some epochs in which the same layers are trained."""

    name: str
    epochs: int
    learning_rate: float
    head_only: bool = False


def phases(config: TrainConfig) -> tuple[Phase, ...]:
    """One phase from scratch; two for a pretrained network, of which the first trains the head on a frozen backbone."""
    if config.weights == "none":
        return (Phase("training", config.epochs, config.learning_rate),)
    head = Phase("head", config.head_epochs, HEAD_LEARNING_RATE, head_only=True)
    return (head, Phase("fine-tuning", config.epochs, config.learning_rate))


def fit(
    network: keras.Model, training: Part, validation: Part, config: TrainConfig, replicas: Replicas,
    state: TrainingState, checkpoint: Path, trackers: list[keras.callbacks.Callback],
) -> None:  # fmt: skip
    """Fit the network in place from the epoch that `state` has reached, and load its best weights at the end.

    The best epoch has the least validation loss. Its weights are kept in `checkpoint`.
    """
    with replicas.scope():
        augment = augmentation(config.seed, config.crop_area) if config.augment else unchanged()
    geometry = heatmap_geometry(network, spread(training.pixels, GEOMETRY_IMAGES)) if config.lungs else None
    trainer = fitted_model(network, augment, config, replicas, geometry)
    batches, held_out = batches_of(training, validation, config, replicas.images_parted(config.mixup))
    begin = 0
    for phase in phases(config):
        end = begin + phase.epochs
        if state.epochs <= end and not state.stopped:
            swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
            choosing = [] if phase.head_only else choose_epoch(checkpoint, config.schedule)
            shown = [KeepFreedMemory(), StopOnNaN(), swap, EpochProgress(phase.name)]
            callbacks = [*shown, *choosing, *trackers, state.follow(begin, batches, held_out, swap, *choosing)]
            set_trainable(network, head_only=phase.head_only, norms=config.weights == "none")
            with replicas.scope():
                compile_model(trainer, phase, len(batches), config, network.dtype_policy.name)
                trainer.fit(
                    batches, validation_data=held_out, initial_epoch=max(begin, state.epochs), epochs=end,
                    callbacks=callbacks, verbose=0,
                    shuffle=False,  # the batches shuffle by seed and epoch; the state of Keras' shuffle is not saved
                )  # fmt: skip
        begin = end
    if checkpoint.exists():  # a worker that is not the chief has none if the best epoch was before an interruption
        trainer.load_weights(checkpoint)


def batches_of(
    training: Part, validation: Part, config: TrainConfig, multiple_of: int
) -> tuple[RadiographBatches, RadiographBatches]:
    """Make the batches for training, and those for validation after each epoch."""
    return (
        RadiographBatches(
            training.pixels, training.labels, config.batch_size, config.seed,
            multiple_of=multiple_of, class_weights=config.class_weights, mixup=config.mixup or None,
            masks=training.masks, halves=config.halves or None,
        ),
        RadiographBatches(
            validation.pixels, validation.labels, -(-VALIDATION_BATCH // multiple_of) * multiple_of, config.seed,
            multiple_of=multiple_of, mixup=0.0 if config.mixup else None, masks=validation.masks,
            halves=0.0 if config.halves else None,
        ),
    )  # fmt: skip


def compile_model(
    trainer: keras.Model, phase: Phase, steps: int, config: TrainConfig, precision: str = "float32"
) -> None:
    """Set optimizer, loss and metric of a phase with `steps` batches per epoch."""
    falls = config.schedule == "cosine"
    rate = cosine(phase.learning_rate, phase.epochs * steps) if falls else phase.learning_rate
    # Averaged weights (Polyak 1992) are validated and kept: they smooth out the noise of small batches.
    optimizer = keras.optimizers.AdamW(rate, WEIGHT_DECAY, use_ema=True, ema_momentum=EMA_MOMENTUM)
    if precision == "mixed_float16":  # small gradients would underflow to 0 (Micikevicius et al. 2018)
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    losses = {"bce": keras.losses.BinaryCrossentropy, "focal": keras.losses.BinaryFocalCrossentropy}
    trainer.compile(
        optimizer,
        losses[config.loss](from_logits=True, label_smoothing=config.label_smoothing),
        metrics=[HardLabelAUC(from_logits=True, num_thresholds=1000, name="auc")],
    )
    trainer.optimizer.build(trainer.trainable_variables)  # now, because a resumed run assigns to its variables


def cosine(rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to `rate`, then cosine decay to `COSINE_END` of it (Loshchilov and Hutter 2017)."""
    warmup = min(WARMUP_STEPS, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        rate / WARMUP_DIVISOR, max(1, steps - warmup), alpha=COSINE_END, warmup_target=rate, warmup_steps=warmup
    )


def choose_epoch(checkpoint: Path, schedule: str) -> list[keras.callbacks.Callback]:
    """Keep the weights of the best epoch. On a plateau, also reduce the learning rate and stop early.

    A cosine schedule runs to its end: its last epochs are the best, and a network from scratch is badly calibrated
    before them.
    """
    keep = keras.callbacks.ModelCheckpoint(checkpoint, monitor="val_loss", save_best_only=True, save_weights_only=True)
    if schedule == "cosine":
        return [keep]
    lower = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.3, patience=1, min_lr=1e-6)
    return [keep, lower, keras.callbacks.EarlyStopping(monitor="val_loss", patience=4)]


def fitted_model(
    network: keras.Model, augment: keras.Sequential, config: TrainConfig, replicas: Replicas,
    geometry: HeatmapGeometry | None = None,
) -> keras.Model:  # fmt: skip
    """Put augmentation and, if configured, mixup in front of the network, and the losses of the lungs after it.

    Parameters
    ----------
    geometry
        Places of the heatmap's cells, with lung masks.
    """
    if replicas.count > 1 and keras.backend.backend() == "tensorflow":  # JAX computes on the whole batch anyway
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    height, width, _ = network.input_shape[1:]
    image = keras.Input((height, width, 1 + config.lungs + (config.halves > 0)), name="image")
    seen, inputs = augment(image), image
    if config.lungs and geometry:
        known = keras.Input((1,), name="known")
        logit = with_lung_task(network, seen, known, geometry, config.evidence_weight)
        return (replicas.model or keras.Model)((image, known), logit)
    if config.mixup:
        share = keras.Input((1,), name="share")
        seen, inputs = PairMix(dtype="float32")(seen, share), (image, share)
    return (replicas.model or keras.Model)(inputs, network(seen))


def set_trainable(network: keras.Model, *, head_only: bool, norms: bool) -> None:
    """Train the head only, or everything except the pretrained batch norms and the fixed filter of the input.

    Small batches would spoil the statistics of a pretrained batch norm. `norms` is True from scratch: they are trained.
    """
    for layer in network.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        is_head = layer.name in ("hidden", "logit") or is_decoder(layer)
        layer.trainable = is_head if head_only else layer.name != "smooth" and (norms or not is_norm)


class HardLabelAUC(keras.metrics.AUC):
    """ROC AUC for labels that may be mixtures: each label is rounded to 0 or 1."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch."""
        super().update_state(keras.ops.round(y_true), y_pred, sample_weight)
