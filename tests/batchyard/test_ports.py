import socket

import pytest

from batchyard.errors import AddressInUse, ConfigError
from batchyard.ports import check_port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_free(host):
    port = check_port(host, 0, "--port")
    assert port > 0
    assert check_port(host, port, "--port") == port


@pytest.mark.parametrize("shared", [False, True])
def test_in_use(shared):
    with socket.create_server(("127.0.0.1", 0), reuse_port=shared) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(AddressInUse, match=f"^--grpc-port {port}: another process uses this port"):
                check_port(host, port, "--grpc-port")


def test_just_closed_is_free():
    """The closing side of a connection keeps the port for a minute, but a server may take it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as accepted:
            accepted.close()
    assert check_port("127.0.0.1", port, "--port") == port


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no.such.host.invalid", "there is no such address"),
        ("x" * 300, "there is no such address"),
        ("203.0.113.1", "not an address of this machine"),
    ],
)
def test_bad_host(host, words):
    with pytest.raises(ConfigError, match=words):
        check_port(host, 8000, "--port")
