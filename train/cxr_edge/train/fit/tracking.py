"""Logging of a training to TensorBoard and MLflow."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.errors import MissingExtraError

if TYPE_CHECKING:
    import keras

#: Default name of the MLflow experiment; MLFLOW_EXPERIMENT_NAME overrides it.
EXPERIMENT = "cxr-edge"
#: File in an unfinished run that holds its MLflow run id.
MLFLOW_RUN = "mlflow-run"


@dataclass(frozen=True)
class Tracking:
    """The logs of a training.

    Attributes
    ----------
    tensorboard
        Folder for TensorBoard's event files.
    mlflow
        Whether to log to the store of MLFLOW_TRACKING_URI, by default `mlflow.db` in the working directory.

    Raises
    ------
    MissingExtraError
        If a package is missing. It is raised before the training starts.
    """

    tensorboard: Path | None = None
    mlflow: bool = False

    def __post_init__(self) -> None:
        needed = {"tensorboard": self.tensorboard} | dict.fromkeys(("mlflow", "sqlalchemy", "alembic"), self.mlflow)
        for module, wanted in needed.items():
            if wanted and find_spec(module) is None:
                raise MissingExtraError("track", module)

    @contextmanager
    def watch(self, run: Path, unfinished: Path, params: dict[str, Any]) -> Iterator[list[keras.callbacks.Callback]]:
        """Log the parameters, each epoch, and at the end the figures and files of the run.

        Yields the callbacks for `fit`. A resumed run continues under its id, which is stored in `unfinished`.
        """
        import keras

        callbacks: list[keras.callbacks.Callback] = []
        if self.tensorboard:
            callbacks.append(keras.callbacks.TensorBoard(self.tensorboard, write_graph=False))
        if not self.mlflow:
            yield callbacks
            return
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # no messages when it creates a database
        import mlflow

        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
        known = unfinished / MLFLOW_RUN
        with mlflow.start_run(known.read_text() if known.exists() else None, run_name=run.name) as logged:
            known.write_text(logged.info.run_id)
            mlflow.log_params(params)
            log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: mlflow.log_metrics(logs, step=epoch))
            yield [*callbacks, log]
            metrics = json.loads((run / "run.json").read_bytes())["metrics"]
            mlflow.log_metrics({f"{on}_{name}": value for on, each in metrics.items() for name, value in each.items()})
            mlflow.log_artifacts(str(run))
