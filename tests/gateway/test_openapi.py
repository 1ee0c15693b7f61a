"""The OpenAPI document, and the service held against it by a fuzzer."""

import json

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.gateway.api_fakes import make_app

API = schemathesis.openapi.from_asgi("/openapi.json", make_app())
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


def test_the_document():
    document = make_app(model="m").openapi()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/ready",
        "/metrics",
    }
    assert "422" not in json.dumps(document)
    for path, request in [
        ("/v1/chat/completions", "ChatRequest"),
        ("/v1/completions", "CompletionRequest"),
    ]:
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{request}"}
        properties = document["components"]["schemas"][request]["properties"]
        assert properties["model"]["enum"] == ["m"]
        assert properties["temperature"]["anyOf"][0]["maximum"] == 2
        codes = {"200", "400", "401", "404", "413", "415", "429", "500", "503"}
        assert set(operation["responses"]) == codes


def test_every_reference_leads_somewhere():
    document = make_app().openapi()
    for reference in references(document):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def references(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@API.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_service_is_as_documented(case):
    case.call_and_validate(checks=CHECKS)
