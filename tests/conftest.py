"""A small real chain, made once: drawn radiographs, a network trained on them, its bundle."""

import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest
from support import needs_shared

from cxr_edge.common.backend import use_onednn

use_onednn()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Otherwise oneDNN keeps a pool as large as the most that any network of a process has needed, up to a gigabyte.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "true")


@pytest.hookimpl(tryfirst=True)  # before the hook of xdist, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs the trained chain as `slow`, what needs ../shared as `data`, and what shares a process."""
    tests, in_groups = Path(__file__).parent, config.pluginmanager.hasplugin("xdist")
    for item in items:
        # `bundle` needs `run`, except in tests/runtime, where it is the packaged model.
        has_run = "run" in getattr(item, "fixturenames", ())
        if has_run:
            item.add_marker("slow")
        if needs_shared.mark in item.iter_markers("skipif"):
            item.add_marker("data")
        if in_groups:
            # One process has TensorFlow in its memory and makes the chain; the others take the remaining files.
            module = item.path.relative_to(tests)
            has_networks = has_run or module.parts[0] in ("train", "export", "benchmarks", "common")
            item.add_marker(pytest.mark.xdist_group("networks" if has_networks else str(module)))


#: Codes with which npm ends where there is no network.
NO_REGISTRY = ("ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "ECONNREFUSED")
#: Resident memory (MB) above which garbage is collected after a test. All networks are made in one process.
MUCH_MEMORY = 1800
#: Growth (MB) since the last collection below which it is not repeated: one takes a second once TensorFlow is imported.
MUCH_GROWTH = 200
#: Resident memory (MB) after the last collection.
_kept = 0.0


@pytest.fixture(autouse=True, scope="module")
def forget_networks_of_module():
    """Let Keras forget the networks of a module after it."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session(free_memory=False)
        free_memory()
        if not gc.get_freeze_count():
            gc.freeze()  # later collections pass over TensorFlow's own objects, which stay until the end


@pytest.fixture(autouse=True)
def free_much_memory():
    """Free memory after a test that leaves much: networks and their graphs are cycles of few, large objects."""
    yield
    if resident_mb() > max(MUCH_MEMORY, _kept + MUCH_GROWTH):
        free_memory()


def free_memory() -> None:
    """Collect garbage, and hand freed memory back to the system, which glibc would keep."""
    global _kept
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
    _kept = resident_mb()


def resident_mb() -> float:
    """Resident memory of this process (MB); 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if statm.exists() else 0.0


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A data set of drawn radiographs: 30 patients of each class."""
    from cxr_edge.train.data.phantom import write_dataset

    folder = tmp_path_factory.mktemp("phantoms")
    list(write_dataset(folder, patients=30, seed=0))
    return folder


@pytest.fixture(scope="session")
def xray(phantoms) -> Path:
    """One drawn radiograph."""
    return phantoms / "train" / "PNEUMONIA" / "person0_bacteria_0.jpeg"


@pytest.fixture(scope="session")
def run(phantoms, tmp_path_factory) -> Path:
    """A cnn that has learned enough from the phantoms to decide and to be rounded like one that is in use."""
    from cxr_edge.train.fit.config import TrainConfig
    from cxr_edge.train.fit.training import train

    folder = tmp_path_factory.mktemp("chain") / "run"
    # With a rate of 3e-3 it learned on some CPUs and with some seeds only: the AUC at a site was 0.67 instead of 0.94.
    config = TrainConfig("cnn", "none", epochs=40, batch_size=4, learning_rate=1e-3, val_fraction=0.2, seed=1)
    train(phantoms, folder, config)
    return folder


@pytest.fixture(scope="session")
def bundle(run, phantoms) -> Path:
    """Its bundle, all files; tests that change it copy it first."""
    from cxr_edge.export.conversion.build import build_bundle
    from cxr_edge.export.conversion.formats import FILES

    folder = run.parent / "bundle"
    build_bundle(run, folder, phantoms, FILES, 32, step=lambda name: None)
    return folder


@pytest.fixture(scope="session")
def site_path(bundle, tmp_path_factory):
    """A site of that bundle; tests that change it copy it first."""
    from cxr_edge.export.conversion.site import build_site
    from cxr_edge.runtime.bundles.bundle import Bundle
    from cxr_edge.runtime.errors import UsageError

    folder = tmp_path_factory.mktemp("sites") / "site"
    try:
        build_site(Bundle.open(bundle), folder, ("fp32", "int8"), step=lambda name: None)
    except UsageError as error:
        if any(code in str(error) for code in NO_REGISTRY):
            pytest.skip(f"npm's registry cannot be reached: {str(error)[-200:]}")
        raise
    return folder


@pytest.fixture
def cli(monkeypatch, capfd):
    """Call the command line in this process: arguments -> (exit code, standard output, standard error)."""
    from cxr_edge.runtime.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cxr-edge", *map(str, arguments)])
        capfd.readouterr()
        code = main()
        return code, *capfd.readouterr()

    return call
