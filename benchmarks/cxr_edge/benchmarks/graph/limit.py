"""The limit of a network and of the decoder on this machine, and how far a measurement is from it.

The roofline model (Williams, Waterman and Patterson, Communications of the ACM 2009): an operator takes at least the
time of its multiply-accumulates at the machine's peak, and at least the time to move its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_edge.benchmarks.graph.counts import Work, count
from cxr_edge.benchmarks.graph.peaks import Peaks, quickest
from cxr_edge.common.dataset import evenly
from cxr_edge.runtime.bundles.bundle import Bundle

#: Precision -> bytes of an element.
SIZES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Limit:
    """The least time of one image.

    Attributes
    ----------
    macs, bytes
        Multiply-accumulates, and bytes that all operators read and write together.
    network_ms
        Least time of the network.
    decode_ms
        Floor of the decoder on these images; None if none of them is a JPEG file.
    """

    macs: int
    bytes: int
    network_ms: float
    decode_ms: float | None


def works_of(bundle: Bundle) -> list[Work] | None:
    """Work of the network of a bundle, read from its fp32 ONNX file; None if it has none."""
    file = bundle.find("onnx", "fp32")
    return None if file is None else count(bundle.folder / file.path)


def limit_of(works: Sequence[Work], precision: str, peaks: Peaks, decode_ms: float | None) -> Limit:
    """The limit in a precision. fp16 is computed as fp32 on processors."""
    size = SIZES.get(precision, 4)
    seconds = sum(least_seconds(work, precision, peaks) for work in works)
    return Limit(sum(w.macs for w in works), sum(w.bytes(size) for w in works), 1e3 * seconds, decode_ms)


def least_seconds(work: Work, precision: str, peaks: Peaks) -> float:
    """The roof over one operator."""
    peak = peaks.int8 if precision == "int8" else peaks.fp32
    return max(work.macs / peak, work.bytes(SIZES.get(precision, 4)) / peaks.bandwidth) / 1e9


def entropy_floor_ms(images: Sequence[Path], most: int = 12) -> float | None:
    """Median milliseconds to decode JPEG files at 1/8 size, in memory.

    The decoder must then still read every entropy-coded bit, but does hardly anything else.
    """
    import simplejpeg

    found = []
    files = [path for path in images if path.suffix.lower() in (".jpg", ".jpeg")]
    for path in evenly(files, most):
        content = path.read_bytes()
        run = lambda content=content: simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1)  # noqa: E731
        found.append(1e3 * quickest(run, 5))
    return sorted(found)[len(found) // 2] if found else None
