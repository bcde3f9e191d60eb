"""Fuzz the DICOM reader with mutated files of every transfer syntax, through `read_image`.

    python tests/fuzz/dicom.py --count 100000 --seed 1 --keep findings

A finding is an exception that is no `CxrEdgeError`, a file that takes more than 0.5 s of processor time, a peak memory
of more than 400 MB, or a decoder that crashes or hangs. Files of findings are kept, and the exit code is 1. A file
depends on the seed and its number only, so that a range can be repeated with `--start`.
"""

import argparse
import os
import random
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMIT_S, LIMIT_MB, HANG_S = 0.5, 400, 20
#: Numbers that break arithmetic: zeros, ones, and the ends of 16 and 32 bits.
EDGES = (0, 1, 2, 7, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def seeds():
    """Sound files to mutate: each syntax with each depth it allows, windows, LUTs and signed pixels."""
    import numpy as np
    from dicom_files import LOSSY, TRANSFER_SYNTAXES, dicom, radiograph, sequence

    from cxr_edge.runtime.imaging.dicom_samples import SAMPLES, sample

    files = []
    for syntax in TRANSFER_SYNTAXES:
        for bits in {"JPEGBaseline8Bit": (8,), "JPEGExtended12Bit": (12,)}.get(syntax, (8, 12, 16)):
            files.append(dicom(radiograph(bits=bits), syntax, bits))
        if syntax not in LOSSY:
            files.append(dicom(radiograph().astype(np.int16) - 2048, syntax, RescaleSlope=2, RescaleIntercept=-9))
    lut = sequence(LUTDescriptor=[4096, 0, 12], LUTData=np.arange(4096, dtype="<u2")[::-1].tobytes())
    for syntax in ("ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "JPEGLossless"):
        files.append(dicom(radiograph(), syntax, VOILUTSequence=lut, ModalityLUTSequence=lut))
        files.append(dicom(radiograph(), syntax, WindowCenter=[900, 5], WindowWidth=[700, 9], PixelPaddingValue=0))
    files += [files[0][132:], *map(sample, SAMPLES)]
    return files


def mutate(file, rng):
    """Damage a file in one to three places."""
    data = bytearray(file)
    for _ in range(rng.randint(1, 3)):
        # Headers of data set and codestream lead further than pixels do.
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 1200))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + rng.randint(1, 40)] = rng.randbytes(rng.randint(0, 40))
        elif kind == 2:
            del data[max(at, 1) :]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 400)] * rng.randint(1, 4)
        elif kind == 4:
            order, size = rng.choice(("<H", ">H", "<I", ">I")), rng.choice(EDGES)
            number = struct.pack(order, size & (0xFFFF if order[1] == "H" else 0xFFFFFFFF))
            data[at : at + len(number)] = number
        elif kind == 5:
            data[at : at + rng.randint(1, 12)] = b""
        else:  # a marker or a tag moves
            other = rng.randrange(len(data))
            data[at : at + 8] = data[other : other + 8]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def fuzzed(files, seed, number):
    """File `number` of a run."""
    rng = random.Random(f"{seed}-{number}")
    return mutate(files[number % len(files)], rng)


def peak_memory():
    """Peak memory of this program in MB. `ru_maxrss` would count the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def work(seed, start, stop, place):
    """Read files start … stop - 1, noting each number in `place` before, so that a crash can be told."""
    from cxr_edge.runtime.errors import CxrEdgeError
    from cxr_edge.runtime.imaging.image import read_image

    files = seeds()
    for file in files:
        read_image(file)  # the seeds are sound; it also imports what is imported once
    refused = 0
    handle = os.open(place, os.O_WRONLY)
    for number in range(start, stop):
        os.pwrite(handle, b"%12d" % number, 0)
        data = fuzzed(files, seed, number)
        began = time.process_time()
        try:
            read_image(data)
        except CxrEdgeError:
            refused += 1
        except BaseException:
            print(f"finding {number}: {traceback.format_exc()}", flush=True)
        taken = time.process_time() - began
        if taken > LIMIT_S:
            print(f"finding {number}: took {taken:.2f} s", flush=True)
    peak = peak_memory()
    if peak > LIMIT_MB:
        print(f"finding {stop - 1}: peak memory {peak} MB over {stop - start} files", flush=True)
    print(f"done {refused} of {stop - start} refused, peak memory {peak} MB", flush=True)


def run_part(seed, start, stop, place):
    """Run `work` in a process of its own; -> (findings as (number, text), number to go on from, last line)."""
    place.write_text(f"{start:12d}")
    command = [sys.executable, __file__, "--worker", str(start), str(stop), "--seed", str(seed), "--place", str(place)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output, note, ended = "", "", None
    last = (place.read_bytes(), time.monotonic())
    while ended is None:
        try:
            output, _ = worker.communicate(timeout=2)
            ended = worker.returncode
        except subprocess.TimeoutExpired:
            now = place.read_bytes()
            if now != last[0]:
                last = (now, time.monotonic())
            elif time.monotonic() - last[1] > HANG_S:
                note = f"hangs for more than {HANG_S} s"
                worker.kill()
    findings = []
    for block in output.split("finding ")[1:]:
        number, _, text = block.partition(": ")
        findings.append((int(number), text.split("\ndone ")[0].strip()))
    if ended == 0:
        return findings, stop, output.strip().splitlines()[-1]
    number = int(place.read_text())
    return [*findings, (number, note or f"ends the process with {ended}")], number + 1, "stopped"


def fuzz(count, seed=0, keep=None, start=0, part=2000):
    """Read `count` mutated files; -> findings as (number, text)."""
    keep = Path(keep or "fuzz-findings")
    files, findings, at = seeds(), [], start
    keep.mkdir(parents=True, exist_ok=True)
    place = keep / "place"
    while at < start + count:
        found, at, line = run_part(seed, at, min(at + part, start + count), place)
        print(f"{at - start}/{count}: {line}", flush=True)
        for number, text in found:
            file = keep / f"{seed}-{number}.dcm"
            file.write_bytes(fuzzed(files, seed, number))
            print(f"FINDING {file}: {text}", flush=True)
        findings += found
    place.unlink()
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="how many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for files of findings")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, *options.worker, options.place)
        return 0
    findings = fuzz(options.count, options.seed, options.keep, options.start)
    print(f"{len(findings)} findings in {options.count} files")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
