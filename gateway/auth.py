"""The API key: `Authorization: Bearer KEY`, in REST and in gRPC."""

import hmac

from fastapi import Request
from fastapi.security import HTTPBearer

from gateway.errors import Unauthenticated


class ApiKey:
    """The one key that clients must send; where there is none, all are welcome."""

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    def check(self, authorization: bytes | None) -> None:
        """`authorization` is the header's value. Raises Unauthenticated."""
        if self._key is None:
            return
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            raise Unauthenticated("No API key given: send it as the header `Authorization: Bearer KEY`.")
        # Takes as long for a key that is nearly right as for any other.
        if not hmac.compare_digest(given.strip(), self._key):
            raise Unauthenticated("The API key is wrong.")


class BearerKey(HTTPBearer):
    """The same as a FastAPI dependency, which puts it into the OpenAPI document."""

    def __init__(self, api_key: ApiKey) -> None:
        super().__init__(scheme_name="ApiKey", auto_error=False)
        self._api_key = api_key

    async def __call__(self, request: Request) -> None:  # type: ignore[override]  # checks, and tells nothing
        header = request.headers.get("authorization")
        # Starlette reads header bytes as Latin-1; this gives them back.
        self._api_key.check(None if header is None else header.encode("latin-1"))
