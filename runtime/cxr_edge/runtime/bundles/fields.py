"""Conversion of JSON objects to frozen dataclasses, with a check of every field.

The annotations of a dataclass declare its JSON: `Annotated[float, Rule(...)]` adds a condition to a type. Lists become
tuples, and integers become floats where a float is declared; nothing else is converted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from cxr_edge.runtime.errors import BundleError

T = TypeVar("T")
#: Maximum nesting of objects and lists; a manifest has 5 levels, parity.json 7.
MAX_DEPTH = 32
#: Maximum length of a wrong value in an error.
QUOTED = 60
#: Metadata of a field whose default is for Python only: JSON must contain it.
REQUIRED = {"required": True}
#: Origins of `X | None`; before Python 3.14, that of `Annotated[X, ...] | None` is not `UnionType`.
OPTIONAL = (Union, UnionType)
TYPES: Mapping[type, str] = {str: "text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Rule:
    """A condition on a value beyond its type, and its description for errors."""

    expected: str
    holds: Callable[[Any], bool]


def one_of(*values: object) -> Rule:
    """Require one of the given values."""
    return Rule(" or ".join(json.dumps(value) for value in values), lambda value: value in values)


@dataclass(frozen=True)
class Document:
    """A JSON text that is checked.

    Attributes
    ----------
    name
        Name of the file, for errors.
    remedy
        Advice to the user, for errors.
    """

    name: str
    remedy: str

    def error(self, field: str, found: str, expected: str) -> BundleError:
        """An error that names the file, the field, what was found, what was expected and what to do."""
        where = f"{self.name}: {field}" if field else self.name
        return BundleError(f"{where}: found {found}, expected {expected}; {self.remedy}")

    def parse(self, text: str | bytes) -> Any:
        """Parse the text strictly: no NaN, no infinity, no duplicate keys, no deep nesting, only valid Unicode.

        Raises
        ------
        BundleError
            If the text violates these rules.
        """
        try:
            data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
            _check_tree(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.name}: not JSON that can be used ({error}); {self.remedy}") from error
        return data

    def build(self, cls: type[T], data: object, field: str = "") -> T:
        """Create a dataclass from a JSON object with exactly its fields; those with a default may be missing.

        A field with the metadata `REQUIRED` must be present even if it has a default.

        Raises
        ------
        BundleError
            If a field is missing, unknown, of a wrong type, or breaks a rule.
        """
        if not isinstance(data, dict):
            raise self.error(field, _quote(data), "an object")
        declared = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(data.keys() - declared):
            known = ", ".join(declared)
            raise self.error(field, f"the unknown field {_quote(unknown[0])}", f"only the fields {known}")
        values = {}
        for name, kind in _kinds(cls).items():  # type: ignore[arg-type]
            where = f"{field}.{name}" if field else name
            if name in data:
                values[name] = self._value(kind, data[name], where)
            elif _is_required(declared[name]):
                raise self.error(where, "nothing", _expected(kind))
        return cls(**values)

    def _value(self, kind: Any, value: object, field: str, expected: str | None = None) -> Any:
        """Convert a JSON value to the type `kind`, one of those in `_expected`; `expected` replaces its description."""
        if get_origin(kind) is Annotated:
            inner, rule = get_args(kind)
            built = self._value(inner, value, field, rule.expected)
            if not rule.holds(built):
                raise self.error(field, _quote(value), rule.expected)
            return built
        if get_origin(kind) in OPTIONAL:  # X | None
            return None if value is None else self._value(get_args(kind)[0], value, field)
        if get_origin(kind) is tuple and isinstance(value, list):
            item = get_args(kind)[0]
            return tuple(self._value(item, entry, f"{field}[{row}]") for row, entry in enumerate(value))
        if is_dataclass(kind):
            return self.build(kind, value, field)  # type: ignore[arg-type]
        if kind is float and type(value) in (int, float):
            return float(value)  # type: ignore[arg-type]
        if (kind in TYPES and type(value) is kind) or (get_origin(kind) is Mapping and isinstance(value, dict)):
            return value
        raise self.error(field, _quote(value), expected or _expected(kind))


def read_limited(path: Path, limit: int, remedy: str) -> bytes:
    """Read a small file.

    Raises
    ------
    BundleError
        If it cannot be read, or has more than `limit` bytes.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    if len(content) > limit:
        raise BundleError(f"{path}: found more than {limit / 1e6:.0f} MB, expected a few kB; {remedy}")
    return content


def _is_required(declared: Field[Any]) -> bool:
    has_default = declared.default is not MISSING or declared.default_factory is not MISSING
    return not has_default or declared.metadata == REQUIRED


@cache
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _expected(kind: Any) -> str:
    """Description of a type."""
    if get_origin(kind) is Annotated:
        return str(get_args(kind)[1].expected)
    if get_origin(kind) in OPTIONAL:
        return f"{_expected(get_args(kind)[0])} or null"
    if get_origin(kind) is tuple:
        return "a list"
    return "a number" if kind is float else TYPES.get(kind, "an object")


def _quote(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return data


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _check_tree(data: object) -> None:
    """Raise ValueError for too deep nesting, numbers beyond double precision, and invalid Unicode."""
    level = [data]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.keys()
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                value.encode()  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
            elif isinstance(value, (int, float)) and not _fits_double(value):
                raise ValueError("a number beyond the range of double precision")
        level = inner
    if level:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _fits_double(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False
