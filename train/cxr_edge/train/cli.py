"""`cxr-edge train`, `cxr-edge average`, `cxr-edge evaluate` and `cxr-edge audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_edge.runtime.cli.console import emit, output_format, table
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED
from cxr_edge.runtime.files import write_atomically
from cxr_edge.train.fit.distribute import STRATEGIES
from cxr_edge.train.fit.models import ARCHITECTURES

if TYPE_CHECKING:
    from cxr_edge.train.data.audit import Audit

LOSSES = ("bce", "focal")
SCHEDULES = ("cosine", "plateau")


@click.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="mobilenetv2")
@click.option(
    "--weights",
    default="imagenet",
    help="'imagenet' (downloaded by Keras), 'none' (from scratch), or a .weights.h5 file for the backbone.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    help="Width of mobilenetv2. ImageNet weights exist for 0.35, 0.5, 0.75, 1, 1.3 and 1.4.",
)
@click.option("--size", type=click.IntRange(64), default=224, help="Input size: a multiple of 32.")
@click.option(
    "--border-crop",
    type=click.FloatRange(0, 0.4),
    default=0.0,
    help="Share of each side that the network crops, to remove markers and collimation.",
)
@click.option(
    "--smooth",
    is_flag=True,
    help="Smooth the input inside the network, so that decisions depend less on the program that resized an image.",
)
@click.option(
    "--augment/--no-augment",
    default=True,
    help="Change position, frame, tone, contrast and noise at random, each in half of the images.",
)
@click.option(
    "--crop-area",
    type=click.FloatRange(0.05, 1),
    default=1.0,
    help="Smallest area of random crops, as a share of the image; 1 is off.",
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Lung masks: DIR/{NORMAL,PNEUMONIA}/NAME.png, white lungs on black, for all radiographs or some.",
)
@click.option(
    "--evidence-weight",
    type=click.FloatRange(0),
    default=1.0,
    help="With --masks: weight of the penalty on evidence outside the lungs.",
)
@click.option(
    "--halves",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="With --masks: share of the radiographs whose left or right half is replaced by that of another one; evidence "
    "must then lie in the half with the pneumonia. 0.12 is a start.",
)
@click.option("--epochs", type=click.IntRange(1), default=12, help="Maximum for fine-tuning.")
@click.option("--head-epochs", type=click.IntRange(1), default=1, help="Epochs on the frozen backbone.")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Total over all devices.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=3e-4)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="cosine",
    help="Cosine decay to 2 %, or reduce on plateau with early stopping (patience 4).",
)
@click.option("--loss", type=click.Choice(LOSSES), default="bce", help="Cross-entropy or focal cross-entropy.")
@click.option("--class-weights/--no-class-weights", default=False, help="Weight both classes equally.")
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 0.5, max_open=True),
    default=0.0,
    help="Share of each label that is spread over both classes.",
)
@click.option(
    "--mixup",
    type=click.FloatRange(0),
    default=0.0,
    metavar="ALPHA",
    help="Mix pairs of images and labels with shares from Beta(ALPHA, ALPHA); 0 is off, 0.2 is usual.",
)
@click.option("--mixed-precision", is_flag=True, help="Train in half precision, for GPUs; the saved network is fp32.")
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="none",
    help="mirrored: all devices of this machine. multiworker: all hosts in TF_CONFIG.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run after its last finished epoch.")
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write TensorBoard logs to DIR.",
)
@click.option("--track", is_flag=True, help="Log to MLflow at MLFLOW_TRACKING_URI, by default mlflow.db here.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.1,
    help="Share of the images for validation, which chooses epoch, temperature and thresholds.",
)
@click.option(
    "--holdout-fraction",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    help="Share of the images for the hold-out, which chooses nothing and is measured at the end.",
)
@click.option("--fold", type=click.IntRange(0), default=0, help="Cross-validation fold index.")
@click.option("--seed", type=int, default=0, help="The same seed gives the same run.")
@click.option(
    "--strangers",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images unlike DATA that the model shall flag; one subfolder for each kind, such as DIR/adult.",
)
@output_format("table", "json")
def train(
    data: Path, run: Path, masks: Path | None, strangers: Path | None, resume: bool, tensorboard: Path | None,
    track: bool, format: str, **options: Any,
) -> None:  # fmt: skip
    """Train a pneumonia classifier on DATA and write a run folder.

    DATA is a folder in the Kaggle layout: {train,val}/{NORMAL,PNEUMONIA}/*.jpeg. Train and val are pooled and split
    again by patient; a test split is never opened. An interrupted run leaves RUN.partial; the same command with
    --resume continues it.

    \b
      cxr-edge train chest_xray -o runs/first
      cxr-edge train chest_xray -o runs/first --resume                   # after an interruption
      cxr-edge train chest_xray -o runs/small --alpha 0.5 --size 160     # a smaller, faster network
      cxr-edge train chest_xray -o runs/lungs --masks lungs              # evidence from the lungs

    GPUs need cxr-edge[train-gpu]; --tensorboard and --track need cxr-edge[track]:

    \b
      cxr-edge train chest_xray -o runs/gpu --mixed-precision --batch-size 64
      cxr-edge train chest_xray -o runs/gpus --strategy mirrored --batch-size 256 --track

    On two hosts with a shared file system, set "index": 1 on the second. The first writes the run:

    \b
      export TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                         "task": {"type": "worker", "index": 0}}'
      cxr-edge train chest_xray -o runs/hosts --strategy multiworker

    Then:

    \b
      cxr-edge export runs/first -o bundle --calib chest_xray
    """
    from dataclasses import fields

    from cxr_edge.common.backend import import_keras_quietly
    from cxr_edge.runtime.quiet import quiet_native_stderr
    from cxr_edge.train.fit.config import TrainConfig
    from cxr_edge.train.fit.distribute import connect
    from cxr_edge.train.fit.tracking import Tracking
    from cxr_edge.train.fit.training import train as run_training

    tracking = Tracking(tensorboard, track)
    with quiet_native_stderr():
        connect(options["strategy"])  # before any other use of TensorFlow
    import_keras_quietly()
    config = TrainConfig(**{f.name: options[f.name] for f in fields(TrainConfig) if f.name in options})
    record = run_training(data, run, config, masks=masks, strangers=strangers, resume=resume, tracking=tracking)
    if not record:
        click.echo("this worker has finished; the chief writes the run", err=True)
        return
    _emit_run(record, run, data, format, {run.name: record["metrics"]})


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Data set that the runs were trained on.")
@click.option("-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option("--masks", type=click.Path(path_type=Path), metavar="DIR", help="Lung masks, if the runs had some.")
@click.option("--strangers", type=click.Path(path_type=Path), metavar="DIR", help="As for `train`.")
@output_format("table", "json")
def average(
    runs: tuple[Path, ...], data: Path, run: Path, masks: Path | None, strangers: Path | None, format: str
) -> None:
    """Average the weights of trained networks: RUN RUN... become one run.

    The mean decides more evenly than each of the networks, at the size and the speed of one (a "model soup"). All runs
    must be from the same data, with the same architecture and the same ImageNet weights; seeds and other options may
    differ. Temperature, thresholds and novelty are fitted again on the held-out patients, and the layers that find the
    lungs on the masks. The table compares the mean with its runs; `evaluate` measures more.

    \b
      cxr-edge train chest_xray -o runs/plain
      cxr-edge train chest_xray -o runs/crops --crop-area 0.5
      cxr-edge average runs/plain runs/crops --data chest_xray -o runs/mean
      cxr-edge evaluate runs/mean chest_xray -o reports/mean
    """
    from cxr_edge.common.backend import import_keras_quietly

    import_keras_quietly()
    from cxr_edge.train.fit.average import average as average_runs

    record = average_runs(runs, data, run, masks=masks, strangers=strangers)
    named = {str(path): each["metrics"] for path, each in zip(runs, record["averaged"], strict=True)}
    _emit_run(record, run, data, format, named | {"mean": record["metrics"]})


def _emit_run(record: dict[str, Any], run: Path, data: Path, format: str, metrics: dict[str, Any]) -> None:
    """Print the record of a new run or, as a table, the metrics of runs by name, and what to do next."""
    if format == "json":
        emit(record, format)
        return
    rows = [
        {"run": name, "on": part} | {key: f"{value:.4f}" for key, value in each.items()}
        for name, parts in metrics.items()
        for part, each in parts.items()
    ]
    emit(rows, format)
    click.echo(f"next: cxr-edge export {run} -o bundle --calib {data}", err=True)


@click.command(context_settings={"show_default": True})
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "report", type=click.Path(path_type=Path), required=True, help="Report folder to write."
)
@click.option(
    "--split",
    type=click.Choice(("holdout", "validation", "all")),
    help="Images of DATA to evaluate.  [default: the hold-out of a run, else its validation part, else all]",
)
@click.option("--shift/--no-shift", default=True, help="Also measure proxies for another hospital.")
@click.option(
    "--faithfulness/--no-faithfulness",
    default=True,
    help="Also test whether the heatmaps show what the network decides by; takes minutes on two cores.",
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Lung masks, DIR/{NORMAL,PNEUMONIA}/NAME.png: also measure how much of the evidence lies in the lungs.",
)
@output_format("table", "json")
def evaluate(
    model: Path, data: Path, report: Path, split: str | None, shift: bool, faithfulness: bool, masks: Path | None,
    format: str,
) -> None:  # fmt: skip
    """Measure MODEL on the labelled radiographs of DATA and write a report.

    MODEL is a run folder, a bundle folder or a single model file. Every figure has a 95 % interval from a bootstrap
    over patients. The command writes report.html, with embedded pictures, and metrics.json.

    \b
      cxr-edge evaluate runs/first chest_xray -o reports/first
      cxr-edge evaluate runs/lungs chest_xray -o reports/lungs --masks lungs
      cxr-edge evaluate bundle chest_xray/test -o reports/test --no-shift --no-faithfulness
    """
    from rich.console import Console

    from cxr_edge.train.evaluation.evaluate import choose_images
    from cxr_edge.train.evaluation.evaluate import evaluate as measure
    from cxr_edge.train.evaluation.report import (
        PAGE,
        check_target,
        evidence_rows,
        heatmap_rows,
        joined_rows,
        rows,
        shift_rows,
        write_report,
    )
    from cxr_edge.train.evaluation.subject import open_subject

    check_target(report)
    subject = open_subject(model)
    source = choose_images(subject, data, split)
    click.echo(f"evaluating on {source.description}", err=True)
    with Console(stderr=True).status("reading") as status:
        evaluation = measure(subject, source, shift, faithfulness, step=status.update, masks=masks)
        status.update("writing the report")
        write_report(evaluation, report)
    if format == "json":
        emit(evaluation.to_dict(), format)
        return
    emit(rows(evaluation), format)
    if evaluation.faithfulness:
        click.echo()
        emit(heatmap_rows(evaluation.faithfulness), format)
    if evaluation.evidence:
        click.echo()
        emit(evidence_rows(evaluation.evidence), format)
        if evaluation.evidence.joined:
            click.echo()
            emit(joined_rows(evaluation.evidence), format)
    if evaluation.shift:
        click.echo()
        emit(shift_rows(evaluation.shift), format)
        worst, decisions = evaluation.shift.worst, evaluation.shift.worst_decisions
        click.echo(f"worst proxies: AUC {worst.auc:.4f} ({worst.name}); decisions: {decisions.name}", err=True)
    click.echo(f"report: {report / PAGE}", err=True)


@click.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@output_format("table", "json")
def audit(data: Path, folder: Path, format: str) -> None:
    """Check DATA before training; exit 1 if patients leak between splits or files are unreadable.

    The command reports class counts, sizes, unreadable files, duplicates, patients and copies across splits, and how
    well file size, shape, brightness and borders alone predict the class. It writes audit.html, a self-contained page,
    and audit.json.

    \b
      cxr-edge audit chest_xray -o audit
    """
    import json

    from rich.console import Console
    from rich.progress import track

    from cxr_edge.train.data.audit import audit as run_audit
    from cxr_edge.train.data.audit_page import write_page

    console = Console(stderr=True)
    result = run_audit(data, lambda images, total: track(images, "reading", total, console=console))
    with console.status("writing the page"):
        write_page(folder / "audit.html", result)
    record = result.to_dict()
    write_atomically(folder / "audit.json", json.dumps(record, indent=2) + "\n")
    if format == "json":
        emit(record, format)
    else:
        click.echo(_audit_tables(result))
    for each in result.unreadable:
        click.echo(f"unreadable: {each.error}", err=True)
    click.echo(f"page: {folder / 'audit.html'}", err=True)
    if not result.passed:
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _audit_tables(result: Audit) -> str:
    """Counts, checks and shortcuts as text."""
    counts = [{key: _spread(cell) for key, cell in row.items()} for row in result.counts()]
    cues = [
        {"class predicted by": each.cue, "AUC": f"{each.auc:.3f}", "larger in": each.higher_in}
        for each in result.shortcuts
    ]
    together = None if result.together is None else f"{result.together:.3f}"
    cues.append({"class predicted by": "all together", "AUC": together, "larger in": None})
    return "\n\n".join(table(rows) for rows in (counts, result.checks(), cues))


def _spread(cell: Any) -> Any:
    """A range of sizes as smallest–median–largest, or as one number if all are equal."""
    return "–".join(map(str, dict.fromkeys(cell.values()))) if isinstance(cell, dict) else cell
