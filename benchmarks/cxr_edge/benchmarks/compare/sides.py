"""What can be compared: a bundle with the code of this process, or with that of a git revision."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import BundleError, EngineError, UsageError

#: Where the packaged model lies in a checkout.
PACKAGED = Path("runtime", "cxr_edge", "runtime", "model")


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes
    ----------
    name
        What tables call it.
    bundle
        Folder of the bundle.
    code
        Folder of the checkout whose code runs; None means the code of this process.
    python
        Interpreter of the processes.
    """

    name: str
    bundle: Path
    code: Path | None = None
    python: str = sys.executable

    @property
    def path(self) -> list[Path] | None:
        """Folders with the packages of the checkout; None for the code of this process."""
        return None if self.code is None else sorted(found.parent for found in self.code.glob("*/cxr_edge"))

    def check_code(self, imported: str) -> None:
        """Raise EngineError if the process imported the package from elsewhere."""
        if self.code is not None and not Path(imported).resolve().is_relative_to(self.code.resolve()):
            raise EngineError(
                f"{self.name}: its process imported cxr_edge from {imported}, expected it below {self.code}; "
                "uninstall the other cxr-edge from this environment, or name another interpreter with --python"
            )


@contextmanager
def other_side(other: str, bundle: Path, packaged: bool) -> Iterator[Side]:
    """Find what `--against` names: a bundle or a checkout of this project, else a git revision of it.

    Parameters
    ----------
    bundle
        The bundle that other code runs, too, unless this is the packaged model: then it runs its own.
    packaged
        Whether `bundle` is the packaged model.

    Raises
    ------
    UsageError, BundleError
        If it is none of them.
    """
    if (Path(other) / PACKAGED.parent).is_dir():
        folder = Path(other).resolve()
        yield Side(other, _packaged_of(other, folder) if packaged else bundle.resolve(), folder)
        return
    if Path(other).exists():
        _ = Bundle.open(Path(other))
        yield Side(other, Path(other).resolve())
        return
    with checkout(other) as folder:
        yield Side(other, _packaged_of(other, folder) if packaged else bundle.resolve(), folder)


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Write the files of a revision to a temporary folder; the repository is not changed.

    Raises
    ------
    UsageError
        If git is missing, this code is not in a repository, or the repository has no such revision.
    """
    archive = _git("archive", "--format=tar", _commit(revision))
    with tempfile.TemporaryDirectory(prefix="cxr-edge-") as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def revision_of_code() -> str | None:
    """The commit of the code of this process; None if it is not in a repository, or if its code was changed."""
    try:
        changed = _git("status", "--porcelain", "--", "*.py").strip()
        return None if changed else _git("rev-parse", "HEAD").decode().strip()
    except UsageError:
        return None


def _commit(revision: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    except UsageError as error:
        raise UsageError(
            f"{revision}: expected a bundle, a checkout or a git revision of this project, found none ({error}); "
            "check the path, or `git fetch` the revision"
        ) from error


def _git(*arguments: str) -> bytes:
    """Run git in the repository of this file; UsageError if it fails."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *_root(folder), *arguments], capture_output=True)
    except FileNotFoundError as error:
        raise UsageError("git is not installed; install it, or compare with a bundle folder") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or "git does not know it"
        raise UsageError(said)
    return done.stdout


def _root(folder: Path) -> list[str]:
    """Arguments that make git work on the whole repository; none where there is no repository."""
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    return [] if done.returncode else ["-C", done.stdout.strip()]


def _packaged_of(revision: str, folder: Path) -> Path:
    if not (folder / PACKAGED).is_dir():
        raise BundleError(f"{revision}: this revision has no packaged model ({PACKAGED}); name a bundle with -m")
    return folder / PACKAGED
