"""The console: a page, and what it shows."""

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from gateway.auth import tenant_by_key
from gateway.console.assets import Asset, load_assets
from gateway.console.state import Console
from gateway.keys.ring import KeyRing

_READ = ["GET", "HEAD"]


def console_router(console: Console, keys: KeyRing) -> APIRouter:
    """The page is for everybody; what it shows is for those with a key, where there are keys."""
    router = APIRouter(include_in_schema=False)
    assets = load_assets()
    index = assets.pop("index.html")

    @router.api_route("/console", methods=_READ)
    async def page(request: Request) -> Response:
        return _serve(index, request)

    @router.api_route("/console/", methods=_READ)
    async def page_with_slash() -> Response:
        return RedirectResponse("../console", 308)  # its links are relative, so that it works behind a prefix

    @router.api_route("/console/state", methods=_READ)
    async def state(request: Request) -> Response:
        tenant = tenant_by_key(request, keys)
        return JSONResponse(await console.state(tenant), headers={"Cache-Control": "no-store"})

    @router.api_route("/console/{name}", methods=_READ)
    async def asset(name: str, request: Request) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return _serve(assets[name], request)

    return router


def _serve(asset: Asset, request: Request) -> Response:
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": asset.etag, "Cache-Control": "no-cache"})
    return Response(asset.content, headers=dict(asset.headers))
