"""One service of the packaged model for all tests that do not harm it."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")

from fuzz.seeds import encode, radiograph
from service import Service, serving

from cxr_edge.runtime import Predictor, load


@pytest.fixture(scope="session")
def service() -> Service:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """The bare predictor that the service is compared with."""
    return load(threads=1)


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return encode(".jpg", radiograph())
