"""A site of the small real bundle, made once for a session."""

import shutil

import pytest


@pytest.fixture(scope="session")
def site(site_path):
    """Its address, served on this machine."""
    from cxr_edge.export.verification.browser import serve_folder

    with serve_folder(site_path) as address:
        yield address


@pytest.fixture
def site_folder_copy(site_path, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(site_path, tmp_path / "site")
