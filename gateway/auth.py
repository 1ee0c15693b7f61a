"""API keys: `Authorization: Bearer KEY`, in REST and, as metadata, in gRPC."""

from fastapi import Request
from fastapi.security import HTTPBearer

from gateway.keys.records import ANYBODY, Tenant
from gateway.keys.ring import KeyRing
from gateway.tracing import observation_in

_TENANT = "batchyard.tenant"


class BearerKey(HTTPBearer):
    """A FastAPI dependency that finds out who asks, and puts the need of a key into the OpenAPI document."""

    def __init__(self, keys: KeyRing) -> None:
        super().__init__(scheme_name="ApiKey", auto_error=False)
        self._keys = keys

    async def __call__(self, request: Request) -> None:  # type: ignore[override]  # what it learns is in the scope
        """Raises Unauthenticated and KeysUnread."""
        tenant = tenant_by_key(request, self._keys)
        request.scope[_TENANT] = tenant
        observation_in(request.scope).of_tenant(tenant.name)


def tenant_by_key(request: Request, keys: KeyRing) -> Tenant:
    """Who asks. Raises Unauthenticated and KeysUnread."""
    header = request.headers.get("authorization")
    # Starlette reads header bytes as Latin-1; this gives them back.
    return keys.tenant(None if header is None else header.encode("latin-1"))


async def tenant_of(request: Request) -> Tenant:
    """A dependency: who asks, for routes that BearerKey secures where there are keys."""
    tenant: Tenant = request.scope.get(_TENANT, ANYBODY)
    return tenant
