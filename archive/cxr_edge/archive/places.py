"""Paths and URLs: local files have their absolute path as URI, all others a URL of fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cxr_edge.runtime.errors import CxrEdgeError, MissingExtraError, UsageError


def is_remote(source: str) -> bool:
    """Whether a source is a URL of a place other than the file system."""
    return "://" in source and not source.startswith("file://")


def absolute(path: Path) -> str:
    """The URI of a local file: its absolute path, or a `file://` URL if its name is not UTF-8."""
    text = os.path.abspath(path)  # noqa: PTH100 (100,000 times faster than resolve, and links stay as they are)
    try:
        text.encode()
    except UnicodeEncodeError:
        return Path(text).as_uri()
    return text


def local_path(uri: str) -> Path:
    """The path of the URI of a local file."""
    if uri.startswith("file://"):
        return Path(unquote(uri.removeprefix("file://"), errors="surrogateescape"))
    return Path(uri)


def open_place(uri: str) -> tuple[Any, str]:
    """The file system of fsspec, and the path on it."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem, path


@contextmanager
def naming_source(source: str, missing_is_fine: bool = False) -> Iterator[None]:
    """Turn what a file system raises into a `UsageError` that names the source and says what to do."""
    try:
        yield
    except CxrEdgeError:
        raise
    except FileNotFoundError as error:
        if not missing_is_fine:
            raise UsageError(f"{source}: not found; check the address") from error
    except ImportError as error:
        raise MissingExtraError("archive", error.name or str(error)) from error
    except Exception as error:  # each object store has its own exceptions
        raise UsageError(
            f"{source}: cannot be read ({type(error).__name__}: {error}); check the address, the network and the "
            "credentials (for s3:// the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE)"
        ) from error
