"""Who may use the service: the address, the token, and pages of other sites."""

import hmac
import subprocess
from base64 import b64encode

import pytest
from service import TOKEN, command, serving

from cxr_edge.runtime import UsageError
from cxr_edge.serve.envelope import LIVE, Access
from cxr_edge.serve.errors import RequestError
from cxr_edge.serve.settings import check_exposure, read_token

ROUTES = [
    ("GET", "/"),
    ("GET", "/v1/model"),
    ("POST", "/v1/predict"),
    ("GET", "/v2"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/mobilenetv2"),
    ("POST", "/v2/models/mobilenetv2/infer"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/none"),
]


@pytest.fixture(scope="module")
def guarded():
    with serving("--host", "0.0.0.0", CXR_EDGE_TOKEN=TOKEN) as service:
        yield service


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_but_liveness_is_open(guarded, method, path):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": basic("x", "wrong")}):
        answer = guarded.request(method, path, b"x" if method == "POST" else None, **headers)
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic ")
    assert guarded.get(LIVE).status == 200


def test_the_token_opens(guarded, jpeg):
    for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("anybody", TOKEN)):
        assert guarded.post("/v1/predict", jpeg, authorization=authorization).status == 200


def test_workers_do_not_know_the_token(guarded):
    from pathlib import Path

    for worker in guarded.workers():
        assert TOKEN.encode() not in Path(f"/proc/{worker}/environ").read_bytes()


def test_digests_of_equal_length_are_compared_in_constant_time(monkeypatch):
    compared = []
    true_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or true_compare(a, b))
    access = Access(TOKEN)
    for presented in ("", "0", TOKEN[:-1], "x" * 10_000):
        with pytest.raises(RequestError):
            access.check("/v1/model", "GET", {"authorization": f"Bearer {presented}"})
    assert len(compared) == 4 and {len(side) for pair in compared for side in pair} == {32}


def test_pages_of_other_sites_are_refused(service, jpeg):
    assert service.post("/v1/predict", jpeg, sec_fetch_site="cross-site").status == 403
    assert service.post("/v1/predict", jpeg, sec_fetch_site="same-origin").status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_addresses_need_a_token_or_insecure(host):
    with pytest.raises(UsageError, match="--token-file"):
        check_exposure(host, None, False)
    check_exposure(host, TOKEN, False)
    check_exposure(host, None, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_none(host):
    check_exposure(host, None, False)


def test_the_command_refuses_to_expose_itself():
    done = subprocess.run(command("--host", "0.0.0.0"), capture_output=True, text=True)
    assert done.returncode == 2 and "--token-file" in done.stderr


def test_tokens_are_checked(tmp_path, monkeypatch):
    monkeypatch.delenv("CXR_EDGE_TOKEN", raising=False)
    assert read_token(None) is None
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    for bad in ("short", "", "ä" * 20, "with spaces in the middle"):
        path.write_text(bad)
        with pytest.raises(UsageError, match="openssl"):
            read_token(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "none")
