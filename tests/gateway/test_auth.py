"""The API key over REST; gRPC's is in test_rpc_service."""

import pytest

from tests.gateway.api_fakes import in_process, make_app

KEY = "s3cret-schlüssel"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_rest_needs_the_key(headers):
    async with in_process(make_app(api_key=KEY)) as client:
        for method, path in [
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/demo"),
        ]:
            # The body is wrong as well, but a stranger is not told so.
            response = await client.request(method, path, headers=headers, content=b"{")
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"


async def test_rest_with_the_key():
    async with in_process(make_app(api_key=KEY)) as client:
        response = await client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}".encode()})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_probes_need_none(path):
    async with in_process(make_app(api_key=KEY)) as client:
        assert (await client.get(path)).status_code == 200


async def test_the_document_says_whether_a_key_is_needed():
    async with in_process(make_app(api_key=KEY)) as client:
        secured = (await client.get("/openapi.json")).json()
    async with in_process(make_app()) as client:
        free = (await client.get("/openapi.json")).json()
    assert secured["paths"]["/v1/completions"]["post"]["security"] == [{"ApiKey": []}]
    assert "security" not in secured["paths"]["/health"]["get"]
    assert "security" not in free["paths"]["/v1/completions"]["post"]
