"""A gateway as `batchyard top` sees it: it answers /console/state with what the test says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REQUEST = {
    "id": "chat-1",
    "tenant": "alice",
    "model": "demo",
    "route": "/v1/chat/completions",
    "status": 200,
    "error": None,
    "arrived": 1_700_000_000_000.0,
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "cached_tokens": 0,
    "ttft": 50.0,
    "duration": 200.0,
    "segments": [["queue", 0.0, 50.0], ["decode", 50.0, 150.0]],
    "timing": {},
    "trace_id": "",
    "trace_url": None,
}

STATE: dict[str, Any] = {
    "version": "1.2.3",
    "model": "demo",
    "key": None,
    "time": 1_700_000_000_000,
    "ready": True,
    "reason": None,
    "age": 10,
    "gateways": {"heard": 1, "of": 1},
    "latency": {
        "ttft": {"count": 2, "p50": 42.0, "p99": 1234.0},
        "itl": {"count": 0, "p50": None, "p99": None},
    },
    "totals": {"tokens_per_second": 1234.5, "running": 3, "waiting": 2, "queue_tokens": 9},
    "workers": [
        {
            "id": "worker-0",
            "address": "unix:/w",
            "device": "cpu",
            "state": "busy",
            "weight": 1.0,
            "rows": 3,
            "max_rows": 8,
            "blocks": {"total": 100, "held": 50, "cached": 25, "free": 25},
            "tokens_per_second": 1234.5,
            "steps": 7,
            "step": {"rows": 3, "tokens": 5, "prompt_tokens": 3, "duration": 4.5, "ago": 3},
        }
    ],
    "tenants": [{"name": "alice", "weight": 2.0, "waiting": 2, "running": 3}],
    "num_tenants": 1,
    "history": {"tokens_per_second": [None, 0.0, 5.0, 10.0], "running": [], "waiting": []},
    "requests": [REQUEST],
}


class Server:
    """Serves on a port that stays the same when it stops and starts again."""

    def __init__(self) -> None:
        self.state: Any = STATE
        self.status = 200
        self.authorizations: list[str | None] = []
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                assert self.path == "/console/state"
                outer.authorizations.append(self.headers["Authorization"])
                body = json.dumps(outer.state).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
