"""Run the packaged model and the runtime's tests on Linux aarch64 under emulation, and compare with this machine.

The script needs Debian, apt with its archive keyring, and network access to a Debian mirror and a Python package index.
It needs neither root nor binfmt_misc: it unpacks arm64 packages into a folder and runs their Python through qemu-user.
For each engine it makes an arm64 environment of core, [dicom], the engine and pytest, and a reference environment with
the same versions for this machine. Both decide on the same images: the golden inputs, drawn radiographs and, where they
are, the originals. It exits with 1 if an output differs by more than the limit, a decision differs, or a test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
EXTRAS = {"litert": "tflite", "onnx": "onnx"}
#: What a probability may differ by where both architectures feed the network the same pixels.
MAX_DIFFERENCE = 1e-5
#: Area averaging rounds a mean of just n + 0.5 up on one architecture and down on the other, in few pixels.
MAX_GREY_LEVELS = 1
MAX_DIFFERENCE_AFTER_ROUNDING = 0.03


@dataclass(frozen=True)
class Suite:
    """What a Debian release brings: its Python, its C library, and the package and path of a static qemu-user."""

    python: str
    glibc_minor: int
    qemu_package: str
    qemu_path: str


SUITES = {
    "bookworm": Suite("3.11", 36, "qemu-user-static", "usr/bin/qemu-aarch64-static"),
    "trixie": Suite("3.13", 41, "qemu-user", "usr/bin/qemu-aarch64"),
}


class EmulationError(Exception):
    """A step that the comparison depends on failed."""


@dataclass(frozen=True)
class Comparison:
    """Outputs of one engine on both architectures.

    Attributes
    ----------
    images, same_pixels, same_labels
        Number compared; with bit-equal network inputs; with the same decision.
    differing_pixels, grey_levels
        Most pixels of one network input that differ, and by how much at most, in [0, 255].
    difference_same_pixels, difference
        Largest absolute difference of a probability: where the network inputs are bit-equal, and of all images.
    """

    images: int
    same_pixels: int
    same_labels: int
    differing_pixels: int
    grey_levels: int
    difference_same_pixels: float
    difference: float

    @property
    def holds(self) -> bool:
        """Whether the two architectures decide alike, within the limits."""
        return (
            self.images > 0
            and self.same_labels == self.images
            and self.grey_levels <= MAX_GREY_LEVELS
            and self.difference_same_pixels <= MAX_DIFFERENCE
            and self.difference <= MAX_DIFFERENCE_AFTER_ROUNDING
        )

    def __str__(self) -> str:
        text = (
            f"{self.same_labels} of {self.images} decisions alike; network input bit-equal for {self.same_pixels}, "
            f"with |Δp| up to {self.difference_same_pixels:.1e}"
        )
        if self.same_pixels == self.images:
            return text
        return (
            f"{text}; in the others up to {self.differing_pixels} pixels differ by up to {self.grey_levels}, "
            f"and |Δp| is up to {self.difference:.1e}"
        )


def main() -> int:
    options = parse()
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        emulator = Emulator.prepare(options)
    except EmulationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    held = [check(emulator, engine, options) for engine in options.engine or EXTRAS]
    return 0 if all(held) else 1


def parse() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr-edge-aarch64"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--engine", action="append", choices=EXTRAS, help="engine to run, may be repeated (default: both)")
    add("--suite", choices=SUITES, default="bookworm", help="Debian release of the arm64 Python (default: bookworm)")
    add("--qemu-suite", choices=SUITES, default="trixie", help="Debian release that qemu comes from (default: trixie)")
    add("--cpu", default="max", help="processor that qemu emulates, such as cortex-a76 (default: max)")
    add("--package", action="append", default=[], metavar="NAME==VERSION", help="use this version, may be repeated")
    add("--originals", type=Path, default=ROOT.parent / "shared" / "data" / "originals", help="folder of radiographs")
    add("--limit", type=int, metavar="N", help="use only N of the originals, evenly spaced")
    add("--no-tests", action="store_true", help="do not run the runtime's tests")
    add("--pytest", default="tests/runtime", metavar="ARGUMENTS", help="what to run (default: tests/runtime)")
    add("--cache", type=Path, default=cache, help="folder of downloads (default: cxr-edge-aarch64 in the user's cache)")
    add("--mirror", metavar="URI", help="Debian mirror (default: the one that this machine's apt uses)")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    return options


def mirror_of_this_machine() -> str:
    """URI of the first package archive that apt is set up with here."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    uris = subprocess.run(targets, capture_output=True, text=True, check=False).stdout.split()
    if not uris:
        raise EmulationError("apt has no package archive here: run apt-get update, or name a mirror with --mirror")
    return uris[0]


@dataclass(frozen=True)
class Emulator:
    """qemu-user and the arm64 system that it runs."""

    qemu: Path
    root: Path
    suite: Suite
    cpu: str

    @classmethod
    def prepare(cls, options: argparse.Namespace) -> Emulator:
        """Download and unpack what is not in the cache yet."""
        host = run(["dpkg", "--print-architecture"]).strip()
        source = SUITES[options.qemu_suite]
        qemu = unpack(options, options.qemu_suite, host, ["download", source.qemu_package]) / source.qemu_path
        # base-files brings the links /lib and /bin, which newer releases need to find the loader.
        packages = ["install", "--download-only", "--yes", "base-files", "libstdc++6", "libgomp1", "python3"]
        emulator = cls(qemu, unpack(options, options.suite, "arm64", packages), SUITES[options.suite], options.cpu)
        print(run([qemu, "--version"]).splitlines()[0], f"-cpu {options.cpu}; Debian {options.suite}", flush=True)
        return emulator

    def environment(self, folder: Path, requirements: Sequence[str]) -> Path:
        """Make an arm64 virtual environment whose `python` is a script that starts qemu; -> that script.

        This machine's kernel runs the script, also when a test starts `sys.executable`: no binfmt_misc is needed.
        """
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        interpreter = self.root / "usr" / "bin" / f"python{self.suite.python}"
        command = shlex.join(map(str, (self.qemu, "-cpu", self.cpu, "-L", self.root)))
        python.write_text(f'#!/bin/sh\nexec {command} -0 "$0" {shlex.quote(str(interpreter))} "$@"\n')
        python.chmod(0o755)
        (folder / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n")
        tags = [f"manylinux_2_{minor}_aarch64" for minor in range(self.suite.glibc_minor, 16, -1)]
        platforms = [f"--platform={tag}" for tag in (*tags, "manylinux2014_aarch64")]
        version = f"--python-version={self.suite.python}"
        target = ["--only-binary=:all:", "--implementation=cp", version, "--target", site_packages(folder, self.suite)]
        pip("install", *target, *platforms, *requirements)
        return python


def site_packages(folder: Path, suite: Suite) -> Path:
    return folder / "lib" / f"python{suite.python}" / "site-packages"


def unpack(options: argparse.Namespace, suite: str, architecture: str, arguments: Sequence[str]) -> Path:
    """Unpack what `apt-get ARGUMENTS` downloads; this apt has its own folders and knows of no installed package."""
    folder = options.cache / f"{suite}-{architecture}-{arguments[-1]}"
    if (folder / "complete").exists():
        return folder / "root"
    if not KEYRING.exists():
        raise EmulationError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    archives = folder / "cache" / "archives"
    for part in (folder / "state" / "lists" / "partial", archives / "partial", folder / "root"):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    mirror = options.mirror or mirror_of_this_machine()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    (folder / "apt.conf").write_text(apt_configuration(folder, architecture))
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    print(f"downloading {arguments[-1]} of Debian {suite}, {architecture}", file=sys.stderr)
    run(["apt-get", "update"], env=environment)
    run(["apt-get", *arguments], env=environment, cwd=archives)
    for package in sorted(archives.glob("*.deb")):
        run(["dpkg", "--extract", package, folder / "root"])
    (folder / "complete").touch()
    return folder / "root"


def apt_configuration(folder: Path, architecture: str) -> str:
    return "".join(
        f'{name} "{value}";\n'
        for name, value in {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }.items()
    )


def check(emulator: Emulator, engine: str, options: argparse.Namespace) -> bool:
    """Compare one engine's outputs, then run the tests; -> whether all hold."""
    with tempfile.TemporaryDirectory(prefix=f"{engine}-", dir=options.cache) as name:
        folder = Path(name)
        try:
            arm, here = environments(emulator, engine, folder, options.package)
            same = compared(engine, arm, here, folder, options)
        except EmulationError as error:
            print(f"{engine}: failed: {error}", flush=True)
            return False
        passed = options.no_tests or tested(arm, options.pytest)
    return same and passed


def environments(emulator: Emulator, engine: str, folder: Path, packages: Sequence[str]) -> tuple[Path, Path]:
    """Install core, [dicom], the engine and pytest for aarch64, and the same versions here; -> both pythons."""
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    arm = emulator.environment(folder / "aarch64", [f"{wheel}[{EXTRAS[engine]},dicom]", "pytest", *packages])
    versions = frozen(site_packages(folder / "aarch64", emulator.suite))
    print(f"\n{engine}: {', '.join(versions)}", flush=True)
    return arm, reference(folder / "reference", versions, wheel)


def frozen(packages: Path) -> list[str]:
    """NAME==VERSION of all that is installed there but this project."""
    lines = pip("freeze", "--path", packages).splitlines()
    return [line for line in lines if "==" in line]


def reference(folder: Path, versions: Sequence[str], wheel: Path) -> Path:
    """An environment of this machine with the same versions; -> its python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *versions, wheel])
    return python


def compared(engine: str, arm: Path, here: Path, folder: Path, options: argparse.Namespace) -> bool:
    program = Path(__file__).with_name("outputs.py")
    inputs = folder / "inputs"
    inputs.mkdir()
    run([here, program, "inputs", inputs], env=environment())
    groups = {"golden and drawn": sorted(inputs.iterdir()), "originals": originals(options.originals, options.limit)}
    holds = True
    for name, images in groups.items():
        if not images:
            print(f"{engine}, {name}: none in {options.originals}, skipped")
            continue
        rows = []
        for python in (here, arm):
            lines = folder / "lines.jsonl"
            run([python, program, "outputs", engine, lines, *images], env=environment())
            rows.append([json.loads(line) for line in lines.read_text().splitlines()])
        comparison = compare(*rows)
        print(f"{engine}, {name}: {comparison}", flush=True)
        holds &= comparison.holds
    return holds


def originals(folder: Path, limit: int | None) -> list[Path]:
    images = sorted(path for path in folder.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png", ".dcm"))
    return images if limit is None else images[:: max(1, len(images) // limit)][:limit]


def compare(here: Sequence[dict], there: Sequence[dict]) -> Comparison:
    """Compare rows of `outputs.py`, in the same order."""
    pairs = list(zip(here, there, strict=True))
    steps = [grey_steps(a["pixels"], b["pixels"]) for a, b in pairs]
    moved = [abs(a["probability"] - b["probability"]) for a, b in pairs]
    return Comparison(
        images=len(pairs),
        same_pixels=sum(not any(s) for s in steps),
        same_labels=sum(a["label"] == b["label"] for a, b in pairs),
        differing_pixels=max((sum(map(bool, s)) for s in steps), default=0),
        grey_levels=max((max(s) for s in steps), default=0),
        difference_same_pixels=max((m for m, s in zip(moved, steps, strict=True) if not any(s)), default=0.0),
        difference=max(moved, default=0.0),
    )


def grey_steps(here: str, there: str) -> list[int]:
    """Absolute difference of each pixel of two pictures in hexadecimal."""
    return [abs(a - b) for a, b in zip(bytes.fromhex(here), bytes.fromhex(there), strict=True)]


def tested(python: Path, arguments: str) -> bool:
    """Run pytest under emulation; -> whether it passed. Prints its last lines."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    found = re.search(r"^(=+ FAILURES =+|=+ ERRORS =+|=+ short test summary).*", done.stdout, re.MULTILINE | re.DOTALL)
    print(found[0] if found else done.stdout[-2000:], done.stderr[-2000:], sep="\n", flush=True)
    if done.returncode:
        print(f"{shlex.join(command[1:])} ended with {ended(done.returncode)}")
    return done.returncode == 0


def environment() -> dict[str, str]:
    """Without this machine's Python path; tests that time something look at CXR_EDGE_EMULATED."""
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "CXR_EDGE_EMULATED": "1"}


def pip(*arguments: object) -> str:
    command, *rest = arguments
    return run([sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *rest])


def run(command: Sequence[object], **options: object) -> str:
    """Run a command; -> its standard output.

    Raises
    ------
    EmulationError
        If it fails: with its last words.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        words = shlex.join(str(part) for part in command[:6])
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise EmulationError(f"{words} … ended with {ended(done.returncode)}:\n{tail}")
    return done.stdout


def ended(code: int) -> str:
    """Exit code in words: a shell or Python reports a signal as 128 + its number or as a negative number."""
    number = -code if code < 0 else code - 128
    return f"signal {number}" if number > 0 else f"exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
