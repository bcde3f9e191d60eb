"""The OpenAPI schema describes the routes that there are, and their answers."""

import json

import pytest
from starlette.routing import Route

from cxr_edge.serve.app import SCHEMA, Service, make_application
from cxr_edge.serve.pool import Pool
from cxr_edge.serve.settings import Limits, ModelChoice

DOCUMENT = json.loads(SCHEMA.read_text())


def test_every_route_is_described_and_no_other():
    limits = Limits(1)
    envelope = make_application(Service(Pool(ModelChoice(), limits), limits), None, None)
    routes = {
        (route.path, method.lower())
        for route in envelope._app.routes
        if isinstance(route, Route)
        for method in route.methods - {"HEAD"}
    }
    described = {
        (path, method) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    assert routes == described


@pytest.mark.parametrize(
    ("path", "method", "route"),
    [
        ("/v1/model", "get", "/v1/model"),
        ("/v2", "get", "/v2"),
        ("/v2/health/live", "get", "/v2/health/live"),
        ("/v2/health/ready", "get", "/v2/health/ready"),
        ("/v2/models/mobilenetv2", "get", "/v2/models/{name}"),
        ("/v2/models/x", "get", "/v2/models/{name}"),
        ("/v2/models/mobilenetv2/ready", "get", "/v2/models/{name}/ready"),
        ("/v1/predict?heatmap=array", "post", "/v1/predict"),
        ("/v1/predict?heatmap=x", "post", "/v1/predict"),
    ],
)
def test_answers_fit_the_schema(service, jpeg, path, method, route):
    jsonschema = pytest.importorskip("jsonschema")
    answer = service.request(method.upper(), path, jpeg if method == "post" else None)
    described = DOCUMENT["paths"][route][method]["responses"][str(answer.status)]
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rpartition("/")[2]]
    schema = described["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**schema, "components": DOCUMENT["components"]})


def test_every_field_of_a_prediction_is_described(predictor, jpeg):
    described = DOCUMENT["components"]["schemas"]["Decided"]
    fields = {"path", *predictor.predict(jpeg).to_dict()}
    assert set(described["required"]) == fields - {"heatmap"}
    assert set(described["properties"]) == fields | {"heatmap_png", "radiograph_png"}


def test_the_service_serves_its_schema_and_the_page(service):
    assert service.get("/openapi.json").json() == DOCUMENT
    page = service.get("/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    for answer in (page, service.get("/v1/model"), service.get("/none")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert service.get("/../../etc/passwd").status == 404
    assert service.get("/v1/model").headers["cache-control"] == "no-store"


def test_metrics_are_what_prometheus_reads(service, jpeg):
    parser = pytest.importorskip("prometheus_client.parser")
    service.upload(("x", jpeg))
    text = service.get("/metrics").body.decode()
    found = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert {"cxr_edge_requests", "cxr_edge_request_seconds", "cxr_edge_images", "cxr_edge_workers_ready"} <= set(found)
    images = {
        sample.labels["answer"]: sample.value
        for sample in found["cxr_edge_images"].samples
        if "answer" in sample.labels
    }
    assert sum(images.values()) >= 1
