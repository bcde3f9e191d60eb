"""Search for image files in folders."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from cxr_edge.runtime.imaging.signatures import HEAD, sniff

#: Files with these suffixes are treated as images without reading their content.
SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".dcm"})


def find_images(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """All image files below `folder`, sorted.

    A file with one of `suffixes` is an image. Any other file is recognised by its first bytes, because DICOM exports
    are often named IM0001 or 1.2.840.113. A DICOMDIR, the index of such an export, is skipped. Links to folders are not
    followed, which avoids loops. Folders and files that cannot be read are skipped.
    """
    found: list[Path] = []
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif _is_image_file(entry, suffixes):
                        found.append(Path(entry.path))
        except OSError:
            continue
    return sorted(found, key=lambda path: path.parts)  # comparing paths themselves takes four times as long


def _is_image_file(entry: os.DirEntry[str], suffixes: Collection[str]) -> bool:
    try:
        if not entry.is_file():  # excludes devices and pipes: opening a pipe would block
            return False
        if os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122 (a Path for each of 100,000 files is slow)
            return True
        if entry.name.upper() == "DICOMDIR":
            return False
        with open(entry.path, "rb", buffering=0) as stream:  # noqa: PTH123
            return sniff(stream.read(HEAD)) is not None
    except OSError:
        return False
