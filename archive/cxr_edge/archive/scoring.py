"""One worker: it holds one predictor, and turns blocks of inputs into Parquet files."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from io import BytesIO
from time import perf_counter
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_edge.archive.isolation import IsolatedPredictor
from cxr_edge.archive.places import is_remote
from cxr_edge.archive.planning import Block
from cxr_edge.archive.reading import members, moment, read_bytes
from cxr_edge.archive.record import Writer, facts_json
from cxr_edge.archive.schema import Content, row_of, table_of
from cxr_edge.archive.sources import place
from cxr_edge.archive.storage import ROWS_FOLDER, WRITING
from cxr_edge.runtime.cli.journal import Facts, differences
from cxr_edge.runtime.errors import CxrEdgeError, EngineError, ImageError, MissingExtraError
from cxr_edge.runtime.imaging.header import max_memory
from cxr_edge.runtime.imaging.signatures import sniff
from cxr_edge.runtime.prediction import Prediction
from cxr_edge.runtime.predictor import load

#: Threads that read in each worker; most of the time they wait for the network.
READERS = 8
#: Number of local files that are read, then decided on, before another thread gets its turn. Most are in the memory of
#: the system or of a near server, so that changing threads for each would take longer than reading.
LOCAL_GROUP = 8
#: Attempt at a block from which on each image is decided on in another process.
CAREFUL = 3
#: An input and what was read for it.
Loaded: TypeAlias = "tuple[Mapping[str, Any], bytes | ImageError, float]"
Row: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Job:
    """What all workers of a run share.

    Attributes
    ----------
    model
        Arguments of `load`, without `threads`.
    threads
        Number of images that a worker decides on at a time.
    timeout
        Seconds for one attempt to read an object.
    sample
        Share of the members of tar files that are scored; None means all.
    """

    model: Mapping[str, Any]
    facts: Facts
    writer: Writer
    threads: int = 1
    timeout: float = 60.0
    sample: float | None = None


@dataclass(frozen=True)
class Done:
    """One block that was written: number of rows and of errors among them, and seconds of work by stage."""

    name: str
    rows: int
    errors: int
    seconds: Mapping[str, float] = field(default_factory=dict)


class Worker:
    """Scores blocks; created once in each worker process.

    Raises
    ------
    EngineError
        If this machine has another model or version than the driver.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        # Each image is decided on by one thread, so that several images do not compete for cores.
        self.predictor = load(**job.model, threads=1)
        if found := differences(vars(job.facts), vars(Facts.of(self.predictor))):
            raise EngineError(
                f"a worker has another model than the driver: {'; '.join(found)}; install the same on all nodes"
            )
        self._predict: Callable[..., Prediction] = self.predictor.predict
        self._readers, self._deciders = ThreadPoolExecutor(READERS), ThreadPoolExecutor(job.threads)
        self._ahead = LOCAL_GROUP * job.threads + READERS

    def score(self, block: Block) -> Done:
        """Score a block and write its file.

        Raises
        ------
        OutputError
            If the file cannot be written; nothing of it is visible then.
        CxrEdgeError
            If the engine failed, or a decoder is missing.
        """
        with self._careful(self._attempt(block)):
            rows = list(self._rows(block))
        _refuse_if_all_crashed(rows)
        table = table_of(rows, facts_json(self.job.facts))
        errors = table.num_rows - table["error_type"].null_count
        seconds = {stage: (pc.sum(table[f"{stage}_ms"]).as_py() or 0) / 1e3 for stage in STAGES}
        start = perf_counter()
        self._write(table, block)
        self.job.writer.output.remove(WRITING, f"{block.name}.attempts")
        return Done(block.name, table.num_rows, errors, {**seconds, "write": perf_counter() - start})

    def _attempt(self, block: Block) -> int:
        """Count the attempts at a block in a file, because the memory of a worker that dies is lost."""
        output, file = self.job.writer.output, f"{block.name}.attempts"
        attempt = int(output.read(WRITING, file) or 0) + 1
        output.write(str(attempt).encode(), WRITING, file)
        return attempt

    @contextmanager
    def _careful(self, attempt: int) -> Iterator[None]:
        """Decide in another process if earlier attempts ended this one."""
        if attempt < CAREFUL:
            yield
            return
        isolated = IsolatedPredictor(self.predictor)
        self._predict = isolated.predict
        try:
            yield
        finally:
            isolated.close()
            self._predict = self.predictor.predict

    def _write(self, table: pa.Table, block: Block) -> None:
        output = self.job.writer.output
        if block.replaces and (before := output.read(ROWS_FOLDER, block.name)):
            kept = pq.read_table(BytesIO(before))
            kept = kept.filter(pc.invert(pc.is_in(kept["uri"], table["uri"].combine_chunks())))
            table = pa.concat_tables([kept.cast(table.schema), table]).sort_by("uri")
        file = BytesIO()
        pq.write_table(table, file, compression="zstd")
        output.write(file.getvalue(), ROWS_FOLDER, block.name, allowed=self.job.writer.check)

    def _rows(self, block: Block) -> Iterator[Row]:
        """Rows of a block, in the order of its inputs; reading, decoding and inference overlap."""
        waiting: deque[tuple[int, Future[list[Row]]]] = deque()
        for size, loading in self._load(block):
            waiting.append((size, self._deciders.submit(self._decide_on, loading)))
            # Bounds the memory of what was read.
            while sum(size for size, _ in waiting) > self._ahead:
                yield from waiting.popleft()[1].result()
        for _, future in waiting:
            yield from future.result()

    def _load(self, block: Block) -> Iterable[tuple[int, Future[list[Loaded]]]]:
        """Groups of inputs that are being read, with their number."""
        if block.is_tar:
            return self._load_tar(block.inputs.to_pylist()[0])
        entries = block.inputs.to_pylist()
        size = 1 if any(is_remote(entry["uri"]) for entry in entries) else LOCAL_GROUP
        groups = (entries[start : start + size] for start in range(0, len(entries), size))
        return ((len(group), self._readers.submit(self._read, group)) for group in groups)

    def _load_tar(self, tar: Mapping[str, Any]) -> Iterator[tuple[int, Future[list[Loaded]]]]:
        for entry, content in members(tar, max_memory(self._max_pixels)):
            if self.job.sample is None or place(entry["uri"], "sample") < self.job.sample:
                future: Future[list[Loaded]] = Future()
                future.set_result([(entry, content, 0.0)])
                yield 1, future

    @property
    def _max_pixels(self) -> int:
        return int(self.job.model["max_pixels"])

    def _read(self, entries: Sequence[Mapping[str, Any]]) -> list[Loaded]:
        loaded: list[Loaded] = []
        for entry in entries:
            start = perf_counter()
            try:
                content: bytes | ImageError = read_bytes(entry["uri"], self._max_pixels, self.job.timeout)
            except ImageError as error:
                content = error
            loaded.append((entry, content, perf_counter() - start))
        return loaded

    def _decide_on(self, loading: Future[list[Loaded]]) -> list[Row]:
        return [self._row(*loaded) for loaded in loading.result()]

    def _row(self, entry: Mapping[str, Any], content: bytes | ImageError, seconds: float) -> Row:
        now = datetime.now(timezone.utc)
        make = partial(row_of, facts=self.job.facts, now=now)
        if isinstance(content, ImageError):
            return make(entry, Content(None, None, 1e3 * seconds), content)
        read = Content(hashlib.sha256(content).hexdigest(), len(content), 1e3 * seconds)
        return make({**entry, **_of_dicom(entry, content)}, read, self._decide(content, entry["uri"]))

    def _decide(self, content: bytes, uri: str) -> Prediction | Exception:
        """The decision, or the error of this input; errors that concern all inputs are raised."""
        try:
            return self._predict(content, name=uri)
        except MissingExtraError:
            raise  # also for a missing decoder: all files of the same kind would fail
        except ImageError as error:
            return error
        except CxrEdgeError:
            raise
        except Exception as error:  # an input on which a decoder fails must not stop millions of others
            return error


STAGES = ("read", "decode", "preprocess", "inference")


def _refuse_if_all_crashed(rows: list[Row]) -> None:
    """An engine that fails on each input, such as a GPU that was lost, must not give a file of errors."""
    kinds = {row.get("error_type") for row in rows}
    if rows and len(kinds) == 1 and not kinds & {None, ImageError.__name__}:
        raise EngineError(
            f"each of {len(rows)} inputs failed with {rows[0]['error_type']}: {rows[0]['error_message']}; check the "
            "engine with `cxr-edge doctor`"
        )


def _of_dicom(entry: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """The study and the date of a DICOM file, where the source names none; several files can be one study."""
    if sniff(content[:132]) != "DICOM" or (entry["study"] is not None and entry["time"] is not None):
        return {}
    from cxr_edge.runtime.imaging.dicom_file import Tag, read_file

    try:
        header = read_file(content).header
        found = {"study": header.text(Tag.StudyInstanceUID) or None, "time": moment(header.text(Tag.StudyDate))}
    except Exception:  # a damaged header; `read_image` says what is wrong with it
        return {}
    return {name: value for name, value in found.items() if entry[name] is None}
