"""The page: decision, doubt and heatmap in a browser, by a server or by the browser itself."""

from __future__ import annotations

from pathlib import Path


def page_folder() -> Path:
    """Static files of the page: HTML, CSS, ES modules and icons. Served as they are, they ask `cxr-edge serve`."""
    return Path(__file__).parent / "page"


def site_folder() -> Path:
    """Sources of what a site adds to the page: LiteRT as its engine, the service worker, the pinned npm packages."""
    return Path(__file__).parent / "site"
