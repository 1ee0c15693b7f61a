import pytest

from tests.batchyard.top.server import Server


@pytest.fixture
def server():
    server = Server()
    server.start()
    yield server
    server.stop()
