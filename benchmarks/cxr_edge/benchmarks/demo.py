"""The command `cxr-edge demo`: the whole chain on phantoms or on real radiographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cxr_edge.runtime.errors import DataError
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.benchmarks.reports.page import DemoResult
    from cxr_edge.common.dataset import LabelledImage
    from cxr_edge.common.figures import GalleryImage
    from cxr_edge.train.fit.config import TrainConfig

#: Phantom patients of each class; every third has two images.
PATIENTS = 150
#: Number of radiographs for verification, and in the report.
VERIFY_IMAGES, SHOWN = 1000, 12


@click.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), default="demo", help="Folder to write.")
@click.option("--weights", default="imagenet", help="As in `cxr-edge train`, for DATA.")
@click.option("--epochs", type=click.IntRange(1), help="[default: 14 on phantoms, 4 on DATA]")
@click.option("--patients", type=click.IntRange(10), default=PATIENTS, help="Phantoms of each class.")
@click.option("--seed", type=int, default=0)
def demo(data: Path | None, output: Path, weights: str, epochs: int | None, patients: int, seed: int) -> None:
    """Train, export, verify, predict and benchmark with one command, and write a report.

    Without DATA, the command draws chest phantoms and trains a small network on them, in less than 4 minutes on 2
    cores. With DATA, in the Kaggle layout, it fine-tunes MobileNetV2 on real radiographs.

    \b
      cxr-edge demo
      cxr-edge demo chest_xray
    """
    from cxr_edge.common.backend import import_keras_quietly

    import_keras_quietly()
    from rich.console import Console

    from cxr_edge.benchmarks.reports.page import write_page
    from cxr_edge.common.dataset import read_dataset
    from cxr_edge.train.fit.config import TrainConfig

    console = Console(stderr=True)
    if data:
        config = TrainConfig(weights=weights, epochs=epochs or 4, seed=seed)
    else:
        data = _draw(output / "phantoms", patients, seed)
        # Phantoms do not differ by room or scanner, so augmentation would not help.
        config = TrainConfig(
            "cnn", "none", epochs=epochs or 14, batch_size=8, learning_rate=3e-3, augment=False, seed=seed
        )
    result = run_chain(data, output, config, console.rule)
    write_page(output / "report.html", result)
    _print(result)
    click.echo(f"report: {output / 'report.html'}")
    some_image = next(image.path for image in read_dataset(data))
    click.echo(f"next: cxr-edge explain -m {output / 'bundle'} {some_image} -o {output / 'pictures'}", err=True)
    click.echo(f"page: cxr-edge serve -m {output / 'bundle'}   # then open http://127.0.0.1:8000/", err=True)


def _print(result: DemoResult) -> None:
    """Print the results of verification, benchmark and training."""
    from cxr_edge.benchmarks.reports.table import print_benchmark
    from cxr_edge.common.progress import table_console
    from cxr_edge.export.verification.report import print_verification

    console = table_console()
    print_verification(result.verification, console)
    print_benchmark(result.benchmark, console)
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.record["metrics"]["validation"].items())
    click.echo(f"validation on held-out patients: {metrics}")


def run_chain(data: Path, output: Path, config: TrainConfig, announce: Callable[[str], None]) -> DemoResult:
    """Train, export, verify, explain and benchmark; write everything below `output`."""
    from cxr_edge.benchmarks.reports.page import DemoResult
    from cxr_edge.benchmarks.suite import Options, benchmark
    from cxr_edge.common.progress import stages
    from cxr_edge.export.conversion.build import build_bundle
    from cxr_edge.export.conversion.formats import FILES
    from cxr_edge.export.verification.gates import DEFAULTS
    from cxr_edge.export.verification.verify import verify_bundle
    from cxr_edge.train.fit.training import train

    run, bundle = output / "run", output / "bundle"
    announce("train")
    record = train(data, run, config)
    announce("export")
    build_bundle(run, bundle, data, FILES, 200, step=announce)
    announce("verify")
    with stages() as progress:
        verification = verify_bundle(bundle, data, run, DEFAULTS, VERIFY_IMAGES, progress)
    announce("predict and explain")
    images = _examples(data)
    shown = _explain(bundle, images, output / "pictures")
    announce("bench")
    with stages() as progress:
        timings = benchmark(bundle, [image.path for image in images], Options(samples=64, run=run), progress)
    write_atomically(output / "bench.json", json.dumps(timings, indent=2) + "\n")
    return DemoResult(data, run, bundle, record, verification, timings, shown)


def _draw(folder: Path, patients: int, seed: int) -> Path:
    """Draw the data set again; only a folder that the demo has drawn is replaced."""
    import shutil

    from cxr_edge.common.progress import stages
    from cxr_edge.train.data.phantom import write_dataset

    marker = folder / "DRAWN"
    if folder.exists() and not marker.is_file():
        raise DataError(f"{folder}: exists and was not drawn by the demo; choose another folder with -o")
    shutil.rmtree(folder, ignore_errors=True)
    write_atomically(marker, f"by cxr-edge demo, seed {seed}\n")
    with stages() as progress:
        for drawn, _ in enumerate(write_dataset(folder, patients, seed), start=1):
            progress("drawing patients", drawn, patients)
    return folder


def _examples(data: Path) -> list[LabelledImage]:
    """Some radiographs of each class, evenly spaced over the test split if there is one."""
    from cxr_edge.common.dataset import SPLITS, read_dataset

    images = read_dataset(data, ("test",) if (data / "test").is_dir() else SPLITS)
    classes = [[image for image in images if image.label == label] for label in (0, 1)]
    half = SHOWN // 2
    return [members[i * len(members) // half] for members in classes for i in range(half)]


def _explain(bundle: Path, images: list[LabelledImage], folder: Path) -> list[GalleryImage]:
    """Explain the images and write their pictures to `folder`."""
    from cxr_edge.common.dataset import CLASSES
    from cxr_edge.common.figures import GalleryImage
    from cxr_edge.runtime.explanation.gradcam import encode_picture
    from cxr_edge.runtime.predictor import load

    predictor = load(bundle, precision="fp32")
    shown = []
    for image in images:
        explanation = predictor.explain(image.path)
        png, found = encode_picture(explanation.picture), explanation.prediction
        write_atomically(folder / f"{image.path.stem}.png", png)
        shown.append(GalleryImage(png, image.path.name, CLASSES[image.label], found.label, found.probability))
    return shown
