"""Mutated bundles and model files through the public interface; run it as long as you like.

    python tests/fuzz/bundles.py --count 10000 --seed 0 --keep found

Every case is a copy of the packaged bundle, or a lone model file of it, with one thing broken. It goes through
`Bundle.open`, `load`, one prediction and the bill of materials, in a child process that handles many cases. A case
fails if it raises anything but a `CxrEdgeError`, takes longer than 0.5 s of processor time, kills the process or lets
it hang. Exit code 1 if a case failed or the memory went beyond 400 MB. `--only NUMBER` runs one case again.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

SECONDS, MEGABYTES = 0.5, 400
#: After so long without an answer a case hangs; cases that one process handles.
HANGS_AFTER, BATCH = 30, 500
#: Values that a field may be changed to.
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 0.5, 1e308, -1e308, 10**400, 2**63, "", "x", "0", "../x", "/etc/passwd", "a\0b", "\ud800",
    "\x1b[2J", "e" * 100_000, [], [[]], {}, {"x": 1}, [1, 2, 3], ["A", "A"], ["A", "B", "C"], "0" * 64,
)  # fmt: skip
#: Texts in place of a JSON file.
TEXTS = (
    b"", b"\0", b"null", b"[]", b"{}", b"3", b'"x"', b"NaN", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000,
    b"1" * 100_000, b'{"schema_version": 1}', b'{"schema_version": 1e999}',
    b'{"schema_version": 1, "schema_version": 1}',
    b" " * 2_000_000,
)  # fmt: skip
SIDECAR = {
    "file": {"path": "model.fp16.engine", "engine": "tensorrt", "precision": "fp16", "sha256": "0" * 64, "bytes": 3},
    "target": {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7", "platform": "Linux aarch64"},
    "options": {"max_batch": 1, "version_compatible": False, "hardware_compatible": False},
    "onnx": "model.onnx", "onnx_sha256": "0" * 64, "strongly_typed": False,
}  # fmt: skip
JSON_FILES = ("manifest.json", "parity.json", "model.fp16.engine.json", "model.sig")
MODEL_FILES = ("model.onnx", "model.int8.tflite")
ENGINES = ("onnx", "litert")
Random = random.Random


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    found: list[tuple[Any, Any]] = []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += [(data, key), *places(value)]
    return found


def change_field(path: Path, rng: Random) -> None:
    """Remove, replace, double or rename fields of a JSON file."""
    data = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not (found := places(data)):
            break
        container, key = rng.choice(found)
        kind = rng.randrange(4)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.append(container[key])
        elif kind == 2 and isinstance(container, dict):
            container[str(rng.choice(VALUES))[:50]] = container.pop(key)
        else:
            container[key] = rng.choice(VALUES)
    path.write_text(json.dumps(data))


def flip_bits(path: Path, rng: Random) -> None:
    """Flip some bits anywhere, or among the first or last bytes, where a model file has its structure."""
    content = bytearray(path.read_bytes())
    first, last = rng.choice(
        ((0, len(content)), (0, min(4096, len(content))), (max(0, len(content) - 8192), len(content)))
    )
    for _ in range(rng.choice((1, 1, 4, 40))):
        if content:
            content[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: Random) -> None:
    """Cut bytes out of the middle, or off the end."""
    content = path.read_bytes()
    start = rng.randrange(len(content) + 1)
    end = rng.choice((len(content), start + 1, start + 100, start + 10_000))
    path.write_bytes(content[:start] + content[end:])


def other_text(path: Path, rng: Random) -> None:
    """Another text in place of the file."""
    path.write_bytes(rng.choice(TEXTS))


def other_kind(path: Path, rng: Random) -> None:
    """A link or a folder in place of the file, or nothing."""
    path.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind < 4:
        path.symlink_to(("/etc/passwd", path.name, "/dev/zero")[kind - 1])


def break_bundle(master: Path, folder: Path, rng: Random) -> Path:
    """Break one file of a copy of the bundle; -> the bundle."""
    name = rng.choice((*JSON_FILES[:1] * 6, *JSON_FILES, *MODEL_FILES))
    for file in (master / "bundle").iterdir():
        if file.name == name:
            shutil.copy(file, folder)
        elif file.name in ("manifest.json", "parity.json", *MODEL_FILES):
            os.link(file, folder / file.name)
    if name == "model.fp16.engine.json":
        (folder / "model.fp16.engine").write_bytes(b"xyz")
    how = [flip_bits, cut, other_text, other_kind, *([] if name in MODEL_FILES else [change_field] * 6)]
    rng.choice(how)(folder / name, rng)
    return folder


def break_lone(master: Path, folder: Path, rng: Random) -> Path:
    """Break a copy of a lone file that carries a digest; -> the file."""
    path = Path(shutil.copy(master / rng.choice(MODEL_FILES), folder))
    rng.choice((flip_bits, flip_bits, cut, other_text, other_kind))(path, rng)
    return path


def prepare(master: Path) -> None:
    """The sound files that all cases start from: a bundle with a sidecar and a signature, and sealed lone files."""
    from cxr_edge.runtime.predictor import packaged_model

    bundle = Path(shutil.copytree(packaged_model(), master / "bundle"))
    (bundle / "model.fp16.engine.json").write_text(json.dumps(SIDECAR))
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    predicate = {
        "serialization": {"method": "files", "hash_type": "sha256"},
        "resources": [{"name": "manifest.json", "algorithm": "sha256", "digest": digest}],
    }
    payload = base64.b64encode(json.dumps({"predicate": predicate}).encode()).decode()
    (bundle / "model.sig").write_text(json.dumps({"dsseEnvelope": {"payload": payload}}))
    for name in MODEL_FILES:
        shutil.copy(bundle / name, master)


def use(path: Path, engine: str) -> None:
    """All that a user may do with a bundle; raises nothing but CxrEdgeError."""
    from cxr_edge.runtime import Bundle, load
    from cxr_edge.runtime.bundles.bom import bill_of_materials

    opened = Bundle.open(path)
    texts = [json.dumps(bill_of_materials(opened.manifest)), opened.manifest.to_json()]
    texts += [str(opened.warning(file)) for file in opened.manifest.all_files]
    "".join(texts).encode()
    load(path, engine, threads=1).predict(np.zeros((224, 224), np.uint8))


def run_case(master: Path, folder: Path, seed: int, number: int) -> str:
    """Make a case and run it; -> what went wrong, or nothing."""
    from cxr_edge.runtime import CxrEdgeError

    rng = Random(f"{seed} {number}")
    path = (break_lone if rng.random() < 0.25 else break_bundle)(master, folder, rng)
    engine = "onnx" if path.suffix == ".onnx" else "litert" if path.suffix == ".tflite" else rng.choice(ENGINES)
    start = time.process_time()
    try:
        use(path, engine)
    except CxrEdgeError as error:
        str(error).encode()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - start
    return f"took {seconds:.2f} s" if seconds > SECONDS else ""


def peak_memory() -> float:
    """Of this process, in MB; getrusage would count what the process had that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM; run this on Linux")


def worker(master: Path, seed: int, numbers: range, pipe: Connection) -> None:
    """Run cases in this process; send (number, what went wrong, peak memory in MB) after each."""
    from cxr_edge.runtime import load

    warnings.simplefilter("ignore")
    for name in MODEL_FILES:  # the libraries' import is no case's
        load(master / name, threads=1).predict(np.zeros((224, 224), np.uint8))
    for number in numbers:
        with tempfile.TemporaryDirectory(dir=master) as folder:
            wrong = run_case(master, Path(folder), seed, number)
        pipe.send((number, wrong, peak_memory()))


def run(count: int, seed: int, first: int = 0, say: Callable[[str], None] = print) -> tuple[dict[int, str], float]:
    """Run `count` cases; -> number of each that failed and why, and the peak memory of any process, in MB."""
    context = multiprocessing.get_context("spawn")
    failed: dict[int, str] = {}
    peak, number, end = 0.0, first, first + count
    with tempfile.TemporaryDirectory() as temporary:
        master = Path(temporary)
        prepare(master)
        while number < end:
            numbers = range(number, min(end, number + BATCH))
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=worker, args=(master, seed, numbers, sender))
            process.start()
            sender.close()
            while number < numbers.stop:
                try:
                    if not receiver.poll(HANGS_AFTER):
                        raise EOFError("hangs")
                    number, wrong, memory = receiver.recv()
                except EOFError as error:
                    process.kill()
                    process.join()
                    failed[number] = str(error) or f"killed the process: {process.exitcode}"
                    say(f"case {number}: {failed[number]}")
                    number += 1
                    break
                peak = max(peak, memory)
                if wrong:
                    failed[number] = wrong
                    say(f"case {number}: {wrong}")
                number += 1
            process.join()
            say(f"{number - first} cases, {len(failed)} failed, peak memory {peak:.0f} MB")
    return failed, peak


def main() -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="Number of one case to run again.")
    parser.add_argument("--keep", type=Path, help="Folder for the cases that failed.")
    options = parser.parse_args()
    first, count = (0, options.count) if options.only is None else (options.only, 1)
    failed, peak = run(count, options.seed, first)
    if options.keep and failed:
        with tempfile.TemporaryDirectory() as master:
            prepare(Path(master))
            for number in failed:
                keep_case(Path(master), options.keep / str(number), options.seed, number)
    return int(bool(failed) or peak > MEGABYTES)


def keep_case(master: Path, folder: Path, seed: int, number: int) -> None:
    """Write a case's files, without using them."""
    folder.mkdir(parents=True)
    rng = Random(f"{seed} {number}")
    (break_lone if rng.random() < 0.25 else break_bundle)(master, folder, rng)


if __name__ == "__main__":
    sys.exit(main())
