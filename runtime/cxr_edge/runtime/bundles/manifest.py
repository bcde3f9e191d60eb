"""The manifest of a bundle: the facts of a model and the rules for each field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, overload

from cxr_edge.runtime.bundles.fields import REQUIRED, Document, Rule, one_of
from cxr_edge.runtime.choices import ENGINES
from cxr_edge.runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SCHEMA_VERSION = 2
#: Schemas that can be read. Manifests of schema 1 lack the fields with a default: no lungs, no kinds, no triage.
READABLE = (1, SCHEMA_VERSION)
MANIFEST = "manifest.json"
#: File with the signature of a signed bundle.
SIGNATURE = "model.sig"
#: File with the model card, for readers.
CARD = "MODEL_CARD.md"
#: Key of the hashes of the training images in `training.data`.
CONTENTS = "contents"
#: Maximum size of a manifest in bytes; usually it has 5,000.
LARGEST_MANIFEST = 1_000_000
REMEDY = "copy the whole bundle again, or export it again"
#: Maximum length of a text field, and maximum side of an image in pixels.
LONGEST_TEXT, LARGEST_SIDE = 10_000, 8192
#: The answer between both classes at a three-way operating point.
UNSURE = "UNSURE"
#: The operating point that `cxr-edge calibrate` adds, and its methods.
SITE = "site"
METHODS = ("labels: bias", "labels: slope and bias", "valley")
#: Unknown sha256: the facts inside a file cannot contain the hash of the whole file.
UNKNOWN_SHA256 = ""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")
_PRECISION = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")

Text = Annotated[
    str, Rule("printable text on one line", lambda text: len(text) <= LONGEST_TEXT and (not text or text.isprintable()))
]
Name = Annotated[str, Rule("a name of 1 to 200 printable characters", lambda n: 0 < len(n) <= 200 and n.isprintable())]
FileName = Annotated[
    str, Rule("the name of a file inside the bundle, without any folder", lambda name: bool(_FILE_NAME.fullmatch(name)))
]
#: Not a closed set: `export` may write files of a precision that the installed runtime does not know by name.
Precision = Annotated[
    str,
    Rule('an identifier such as "fp32", "fp16" or "int8"', lambda name: bool(_PRECISION.fullmatch(name))),
]
Sha256 = Annotated[str, Rule("64 hexadecimal digits", lambda digest: bool(_SHA256.fullmatch(digest)))]
Count = Annotated[int, Rule("a whole number ≥ 0", lambda count: 0 <= count < 2**53)]
Side = Annotated[int, Rule(f"a whole number from 1 to {LARGEST_SIDE}", lambda side: 1 <= side <= LARGEST_SIDE)]
Positive = Annotated[float, Rule("a number > 0", lambda value: value > 0)]
NotNegative = Annotated[float, Rule("a number ≥ 0", lambda value: value >= 0)]
Probability = Annotated[float, Rule("a number in [0, 1]", lambda value: 0 <= value <= 1)]
#: Number of quantiles of a distribution: at 0, 1, ..., 100 %.
QUANTILES = 101
Quantiles = Annotated[
    tuple[float, ...],
    Rule(f"{QUANTILES} ascending numbers", lambda values: len(values) == QUANTILES and list(values) == sorted(values)),
]
Interval = Annotated[
    tuple[float, ...], Rule("two numbers, the lower one first", lambda ends: len(ends) == 2 and ends[0] <= ends[1])
]


@dataclass(frozen=True)
class InputContract:
    """The input of the network: raw grayscale pixels, which the graph normalises."""

    height: Side = 224
    width: Side = 224
    channels: Annotated[int, one_of(1, 3)] = 1
    name: Name = "image"
    dtype: Annotated[str, one_of("uint8")] = "uint8"
    layout: Annotated[str, one_of("NHWC")] = "NHWC"
    interpolation: Annotated[str, one_of("area")] = "area"


@dataclass(frozen=True)
class HeatmapGeometry:
    """Positions of the cells of the heatmap in the network's input.

    The centre of the receptive field of cell (i, j) is the pixel (origin + stride·i, origin + stride·j).
    """

    stride: Positive
    origin: float


@dataclass(frozen=True)
class LungGrid:
    """Size of the output `lungs`, whose cells are equal tiles of the network's input."""

    height: Side
    width: Side


@dataclass(frozen=True)
class OperatingPoint:
    """One or two thresholds on the probability p, and the rule by which they were chosen.

    Attributes
    ----------
    threshold
        The answer is the second class (pneumonia) if p ≥ threshold.
    rule_out
        None: all other images are of the first class (normal). Otherwise at most `threshold`: the answer is the first
        class if p < rule_out, and `UNSURE` between both thresholds.
    """

    name: Name
    threshold: Probability
    chosen: Text
    rule_out: Probability | None = None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds at which the answer changes, ascending."""
        return (self.threshold,) if self.rule_out is None else (self.rule_out, self.threshold)

    @property
    def rule(self) -> str:
        """The thresholds in words."""
        unsure = "" if self.rule_out is None else f", unsure from {self.rule_out:.4f}"
        return f"p ≥ {self.threshold:.4f}{unsure}"

    @overload
    def answer(self, probability: float) -> int: ...
    @overload
    def answer(self, probability: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]: ...
    def answer(self, probability: Any) -> Any:
        """The index in `Manifest.answers` of a probability or of (N,) probabilities: the thresholds it reaches."""
        return sum(probability >= threshold for threshold in self.thresholds)


@dataclass(frozen=True)
class SiteCalibration:
    """How the operating point `site` was made; written by `cxr-edge calibrate`.

    Attributes
    ----------
    date
        When, in ISO 8601.
    method
        `labels: bias`, `labels: slope and bias` or `valley` (without labels).
    images, labelled, strangers
        Numbers of images, of labelled ones, and of those that are not in distribution.
    fingerprint
        sha256 over the sorted sha256 of the image files, with their labels.
    prevalence, prevalence_interval
        Share of pneumonia for which the threshold was chosen; its 95 % interval by bootstrap.
    threshold_interval
        95 % interval of the threshold by bootstrap.
    shift, shift_interval, largest_shift
        Log-odds by which the threshold moved from that of the shipped default; its 95 % interval; the bound.
    forced
        Whether the shift is beyond its bound (`--force`).
    slope, bias
        The probability at the site is sigmoid(slope · logit + bias).
    """

    date: Name
    method: Annotated[str, one_of(*METHODS)]
    images: Count
    labelled: Count
    strangers: Count
    fingerprint: Annotated[str, Rule("64 hexadecimal digits", lambda digest: len(digest) == 64)]
    prevalence: Probability
    prevalence_interval: Interval
    threshold_interval: Interval
    shift: float
    shift_interval: Interval
    largest_shift: Positive
    forced: bool
    slope: Positive
    bias: float

    def probability(self, logit: float) -> float:
        """The probability of pneumonia at the site for a logit, in [0, 1]."""
        odds = math.exp(-abs(log_odds := self.slope * logit + self.bias))
        return 1 / (1 + odds) if log_odds >= 0 else odds / (1 + odds)


@dataclass(frozen=True)
class ModelFile:
    """One file of the bundle, with its hash and size."""

    path: FileName
    engine: Annotated[str, one_of(*ENGINES)]
    precision: Precision
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class ClassReference:
    """What the model says about images of one class on which nothing was chosen in training.

    Attributes
    ----------
    images, patients
        Their number, and the number of their patients.
    logit, novelty
        Quantiles of these numbers.
    novel
        Number of images that are not in distribution.
    with_evidence
        Number of images whose heatmap is not empty; 0 if the model does not find the lungs.
    evidence_in_lungs
        Quantiles over the images with evidence; None if there are none.
    lungs_missed
        Number of images in which the lungs are not found, or not both, or not whole; None if the model does not find
        the lungs.
    """

    images: Annotated[int, Rule("a whole number ≥ 1", lambda count: 1 <= count < 2**53)]
    patients: Annotated[int, Rule("a whole number ≥ 1", lambda count: 1 <= count < 2**53)]
    logit: Quantiles
    novelty: Quantiles
    novel: Count
    with_evidence: Count
    evidence_in_lungs: Quantiles | None
    lungs_missed: Count | None


@dataclass(frozen=True)
class Reference:
    """Distributions with which the decisions of a site are compared (`cxr-edge monitor`).

    They are kept for each class, because the share of pneumonia differs between sites and is no drift by itself.

    Attributes
    ----------
    part
        The part of the training data whose images these are, such as `hold-out`.
    classes
        The distributions of both classes, in the order of `Manifest.classes`.
    """

    part: Name
    classes: Annotated[tuple[ClassReference, ...], Rule("one entry for each class", lambda found: len(found) == 2)]


@dataclass(frozen=True)
class Manifest:
    """The facts of a model; written by `cxr-edge export`.

    The runtime decides with `files`. `gradient` (d logit / d image) only explains decisions and is optional.
    `companions` have other inputs or outputs and serve other clients; the runtime does not use them. `training` and
    `calibration` record provenance (data fingerprint, split, seed, versions) and are not interpreted. The first
    operating point is the default. An image with a novelty above the threshold is not in distribution. `novelty_kinds`
    names the columns of the output `unlike`; it is empty if the files lack this output. `lungs` is None if the files
    lack the output `lungs`. `reference` is None in bundles of earlier versions; the runtime does not interpret it.
    `site` says how the operating point `site` was made; None if no site calibrated the bundle.
    """

    name: Name
    created: Name
    input: InputContract
    heatmap: HeatmapGeometry
    operating_points: Annotated[tuple[OperatingPoint, ...], Rule("at least one operating point", bool)]
    novelty_threshold: NotNegative
    temperature: Positive = field(default=1.0, metadata=REQUIRED)
    classes: Annotated[
        tuple[Name, ...], Rule("two different class names", lambda names: len(names) == len(set(names)) == 2)
    ] = field(default=("NORMAL", "PNEUMONIA"), metadata=REQUIRED)
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    novelty_kinds: Annotated[
        tuple[Name, ...], Rule("different names of kinds", lambda names: len(names) == len(set(names)))
    ] = ()
    files: tuple[ModelFile, ...] = ()
    companions: tuple[ModelFile, ...] = ()
    gradient: ModelFile | None = None
    lungs: LungGrid | None = None
    reference: Reference | None = None
    site: SiteCalibration | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str, embedded: bool = False) -> Manifest:
        """Read a manifest and check every field.

        Parameters
        ----------
        text
            JSON.
        name
            Name of the source, for errors.
        embedded
            Whether it is stored inside a model file and therefore cannot contain the sha256 of that file.

        Raises
        ------
        BundleError
            If it is not JSON, has another schema, or a field is missing, unknown, of a wrong type or out of range.
            The error names the field.
        """
        document = Document(name, REMEDY)
        if len(text) > LARGEST_MANIFEST:
            raise document.error("", f"{len(text)} bytes", f"at most {LARGEST_MANIFEST}")
        data = document.parse(text)
        if isinstance(data, dict) and data.get("schema_version") not in READABLE:
            found, remedy = json.dumps(data.get("schema_version"))[:20], "upgrade cxr-edge, or export the bundle again"
            raise Document(name, remedy).error("schema_version", found, " or ".join(map(str, READABLE)))
        manifest = document.build(cls, data)
        _check_unique(document, "operating_points", "name", (point.name for point in manifest.operating_points))
        _check_order(document, manifest.operating_points)
        if manifest.site and all(point.name != SITE for point in manifest.operating_points):
            raise document.error("operating_points", f"no point {SITE!r}", f"one, because the field {SITE} is given")
        _check_unique(document, "files", "path", (file.path for file in manifest.all_files))
        if not embedded:
            for file in manifest.all_files:
                if file.sha256 == UNKNOWN_SHA256:
                    raise document.error(f"sha256 of {file.path}", '""', "64 hexadecimal digits")
        return manifest

    @property
    def all_files(self) -> tuple[ModelFile, ...]:
        """Every file of the manifest, including gradient and companions."""
        return (*self.files, *([self.gradient] if self.gradient else []), *self.companions)

    def answers(self, point: OperatingPoint) -> tuple[str, ...]:
        """The possible answers at an operating point, in the order of the probability."""
        normal, pneumonia = self.classes
        return (normal, pneumonia) if point.rule_out is None else (normal, UNSURE, pneumonia)

    def operating_point(self, name: str | None = None) -> OperatingPoint:
        """The operating point with this name; the default one if `name` is None. Raises UsageError if there is none."""
        for point in self.operating_points:
            if name in (None, point.name):
                return point
        known = ", ".join(point.name for point in self.operating_points)
        raise UsageError(f"no operating point {name!r} in this bundle; it has: {known}")


def _check_order(document: Document, points: Iterable[OperatingPoint]) -> None:
    """Refuse a lower threshold above the upper one."""
    for row, point in enumerate(points):
        if point.rule_out is not None and point.rule_out > point.threshold:
            expected = f"at most the threshold {point.threshold}"
            raise document.error(f"operating_points[{row}].rule_out", str(point.rule_out), expected)


def _check_unique(document: Document, field: str, key: str, names: Iterable[str]) -> None:
    """Refuse duplicate names, because they would be ambiguous."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise document.error(field, f"two entries of the {key} {name!r}", f"each {key} once")
        seen.add(name)
