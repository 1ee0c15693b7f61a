"""When `batchyard serve` is ready, and the line that says so."""

import asyncio
import contextlib
import json
import shlex
import ssl

from batchyard.config import ServeSettings


def ready_line(settings: ServeSettings) -> str:
    """The line that says that all is ready, and what to try."""
    scheme = "https" if settings.ssl_certfile else "http"
    url = f"{scheme}://{_in_url(reachable(settings.host))}:{settings.port}"
    model = settings.served_model_name or settings.model
    question = {"role": "user", "content": "What does os.path.join do?"}
    body = json.dumps({"model": model, "messages": [question]}, separators=(",", ":"))
    key = '-H "Authorization: Bearer $BATCHYARD_API_KEY" ' if settings.api_key or settings.api_keys else ""
    headers = f"-H 'Content-Type: application/json' {key}"
    curl = f"curl -s {url}/v1/chat/completions {headers}-d {shlex.quote(body)}"
    return f"Batchyard is ready: {url} (model {model})  console: {url}/console  try: {curl}"


def reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


async def answers_ready(host: str, port: int, context: ssl.SSLContext | None = None) -> bool:
    """Whether the gateway at host:port answers 200 to `GET /ready`; over TLS where there is a `context`."""
    request = f"GET /ready HTTP/1.1\r\nHost: {_in_url(host)}:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            with contextlib.closing(writer):
                writer.write(request.encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
