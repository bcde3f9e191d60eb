"""Averaging the weights of trained networks ("model soup", Wortsman et al. 2022): one network, as fast as each.

Networks that were fine-tuned from the same weights with other options, or on the data in another order, lie in one
valley of the loss: between them it does not rise (Neyshabur et al. 2020). Their mean decides like their ensemble, at
the cost of one network. The saved networks are folded, so that no statistics of batch norms have to be estimated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_edge.common.dataset import fingerprint, read_dataset
from cxr_edge.common.run import Run
from cxr_edge.runtime.errors import DataError, UsageError
from cxr_edge.runtime.files import naming
from cxr_edge.train.data.masks import find_masks, mask_facts
from cxr_edge.train.data.patients import split_by_blocks
from cxr_edge.train.data.strangers import Strangers
from cxr_edge.train.fit.config import Part
from cxr_edge.train.fit.lungs import fit_decoder
from cxr_edge.train.fit.record import check_target, put_in_place, write_run

if TYPE_CHECKING:
    import keras

#: Options that the runs share: they give the network, its first weights and the held-out patients. From scratch, the
#: seed gives all first weights; else it gives those of the small head only, which did no harm (docs/experiments.md).
SHARED_OPTIONS = (
    "arch", "weights", "alpha", "size", "border_crop", "smooth", "lungs", "val_fraction", "holdout_fraction", "fold",
)  # fmt: skip


def average(
    folders: Sequence[Path], data: Path, run: Path, *, masks: Path | None = None, strangers: Path | None = None
) -> dict[str, Any]:
    """Average the weights of runs, and fit temperature, thresholds and novelty of the mean as `train` does.

    The layers that find the lungs are fitted again, too: averaging blurs their map (measured: a Dice coefficient of
    0.937 instead of 0.940, and 0.943 after it).

    Parameters
    ----------
    folders
        Runs that were trained on `data` from the same first weights.
    data, masks, strangers
        As for `train`. `masks` are needed if the runs find the lungs.
    run
        Folder to write: `model.keras`, `novelty.npz` and `run.json`, which names the runs.

    Returns
    -------
    The content of `run.json`.

    Raises
    ------
    BundleError, IntegrityError
        If a folder is not a run, or its files have changed.
    DataError
        If the runs were trained on other data.
    UsageError
        If there are fewer than two runs, two are the same, they did not start alike, masks are missing, or `run` exists
        and is not a run.
    OutputError
        If `run` cannot be written.
    """
    check_target(run)
    runs = [Run.open(folder) for folder in folders]
    _check_alike(runs)
    options = _shared_options(runs)
    if (masks is not None) != bool(options.get("lungs")):
        raise UsageError(
            "these runs find the lungs; add --masks with the masks that they were trained with" if masks is None
            else "these runs were trained without masks and find no lungs; leave --masks out"
        )  # fmt: skip
    images = read_dataset(data, ("train", "val"))
    if fingerprint(images) != runs[0].fingerprint:
        raise DataError(f"{data}: not the data that {runs[0].folder} was trained on; name the folder of its `train`")
    drawn = None if masks is None else find_masks(masks, images)
    strange = Strangers.read(strangers, options["size"], images) if strangers else None
    split = split_by_blocks(images, options["val_fraction"], options["holdout_fraction"], options["fold"])
    training, validation, holdout = (Part.read([images[i] for i in rows], options["size"], drawn) for rows in split)
    facts = {
        "config": options,
        "data": runs[0].record["data"],
        "masks": mask_facts(drawn) if drawn else None,
        "averaged": [_facts(each, options) for each in runs],
        "history": {},
        "seconds": sum(each.record["seconds"] for each in runs),
    }
    if strange:
        facts["strangers"] = strange.facts()
    with naming(run):  # before the long work
        run.parent.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=f".{run.name}.", dir=run.parent)
    with temporary as private:
        network = _mean(runs)
        if training.masks is not None:
            fit_decoder(network, training.pixels, training.masks, options["seed"])
        written = Path(private) / run.name  # with the usual permissions: the temporary folder is for its owner only
        written.mkdir()
        record = write_run(written, network, training, validation, holdout, facts, strange.pixels if strange else None)
        put_in_place(written, run)
    return record


def _check_alike(runs: Sequence[Run]) -> None:
    """Check that the runs are different ones that started alike."""
    if len(runs) < 2:
        raise UsageError(f"{len(runs)} run to average, expected at least 2; name more runs")
    first, *others = runs
    hashes = [each.record["model_sha256"] for each in runs]
    options = (*SHARED_OPTIONS, "seed") if first.record["config"]["weights"] == "none" else SHARED_OPTIONS
    for row, each in enumerate(others, 1):
        if hashes[row] in hashes[:row]:
            twin = runs[hashes.index(hashes[row])].folder
            raise UsageError(f"{each.folder}: the same network as {twin}; name each run once")
        if each.fingerprint != first.fingerprint:
            raise DataError(f"{each.folder}: trained on other data than {first.folder}; train them on the same folder")
        for option in options:
            mine, its = (run.record["config"].get(option) for run in (each, first))
            if mine != its:
                raise UsageError(
                    f"{each.folder}: trained with {option} {mine}, but {first.folder} with {its}; only runs with the "
                    f"same {option} have a useful mean: train one of them again"
                )


def _shared_options(runs: Sequence[Run]) -> dict[str, Any]:
    """The options that all runs share, and the seed of the first."""
    first, *others = (run.record["config"] for run in runs)
    shared = dict(option for option in first.items() if all(option in other.items() for other in others))
    return shared | {"seed": first["seed"]}


def _facts(run: Run, shared: dict[str, Any]) -> dict[str, Any]:
    """The entry of a run in `averaged`: its network, and the options that the mean does not have."""
    own = dict(option for option in run.record["config"].items() if option not in shared.items())
    kept = ("model_sha256", "created", "seconds", "metrics")
    return {key: run.record[key] for key in kept} | {"config": own}


def _mean(runs: Sequence[Run]) -> keras.Model:
    """The network of the runs, with the mean of their weights."""
    network, *others = (run.network() for run in runs)
    weights = zip(network.get_weights(), *(each.get_weights() for each in others), strict=True)
    network.set_weights([np.mean(each, axis=0) for each in weights])
    return network
