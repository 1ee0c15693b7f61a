"""The probe against real servers: serving, not serving yet, absent; gRPC and HTTP."""

import asyncio
import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from batchyard.probe import grpc_problem, http_problem, main
from batchyard.rpc import RpcServer
from batchyard.settings import variable_of
from tests.certificates import Authority, internal


@contextlib.contextmanager
def http_server(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/ready"
        server.shutdown()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is bound and not listened on, so that no other process can serve there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:{folder}/rpc.sock"])
async def test_grpc_serves_when_it_says_so(tmp_path, address):
    server = RpcServer(address.format(folder=tmp_path))
    await server.start()
    assert await grpc_problem(server.address) == "NOT_SERVING"
    await server.set_serving(True)
    assert await grpc_problem(server.address) is None
    await server.stop(grace=0)


async def test_grpc_with_nobody_there_is_told_within_the_timeout(nobody):
    problem = await grpc_problem(nobody, timeout_s=0.5)
    assert problem is not None
    assert problem.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_http_status_becomes_the_exit_code(status, code):
    with http_server(status) as url, pytest.raises(SystemExit) as ended:
        main([url])
    assert ended.value.code == code


def test_http_with_nobody_there(nobody):
    assert "refused" in str(http_problem(f"http://{nobody}/ready"))


def test_http_ignores_a_proxy_of_the_environment(monkeypatch, nobody):
    monkeypatch.setenv("http_proxy", f"http://{nobody}")
    with http_server(200) as url:
        assert http_problem(url) is None


def test_no_answer_is_one_line(nobody, capsys):
    with pytest.raises(SystemExit) as ended:
        main([f"http://{nobody}/"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


async def test_grpc_is_asked_over_tls_where_that_is_configured(monkeypatch, tmp_path):
    files = Authority(tmp_path).issue("us", "worker-7")  # which is not the address that is asked
    for name, value in internal(files).items():
        monkeypatch.setenv(variable_of(name), value)
    server = RpcServer("127.0.0.1:0", tls=files)
    await server.start()
    await server.set_serving(True)
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, [server.address])
    assert ended.value.code == 0
    await server.stop(grace=0)


@pytest.mark.parametrize(
    ("argv", "env", "says"),
    [
        (["https://127.0.0.1:1/ready"], {}, "ssl_certfile and ssl_keyfile are not set here"),
        (["127.0.0.1:1"], {"BATCHYARD_INTERNAL_SSL_CERTFILE": "c"}, "go together"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(argv, env, says, monkeypatch, capsys):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["a:1", "b:2"]])
def test_usage(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
