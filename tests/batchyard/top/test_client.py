import socket
import threading

import pytest

from batchyard.errors import UserError
from batchyard.top.client import Gateway, Poller, ServerAway
from tests.batchyard.top.server import STATE


def test_the_state_as_it_is_told(server):
    assert Gateway(f"{server.url}/", "secret").state() == STATE
    assert server.authorizations == ["Bearer secret"]


def test_nothing_in_it_is_a_command_to_the_terminal(server):
    server.state = STATE | {"model": "\x1b]0;owned\x07de\nmo", "workers": [{"id": "\x9b2J\u202eok é"}]}
    state = Gateway(server.url).state()
    assert (state["model"], state["workers"][0]["id"]) == ("�]0;owned�de�mo", "�2J�ok é")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "No API key given."}}, "No API key given. .*BATCHYARD_API_KEY"),
        (404, {}, "has no console"),
    ],
)
def test_what_trying_again_does_not_mend(server, status, body, words):
    server.status, server.state = status, body
    with pytest.raises(UserError, match=words):
        Gateway(server.url).state()


def test_what_may_be_better_soon(server):
    server.status, server.state = 503, {"error": {"message": "keys unread"}}
    with pytest.raises(ServerAway, match="keys unread"):
        Gateway(server.url).state()
    server.status, server.state = 500, []
    with pytest.raises(ServerAway, match="answers 500"):
        Gateway(server.url).state()
    server.stop()
    with pytest.raises(ServerAway, match=f"{server.url} cannot be reached: .*refused"):
        Gateway(server.url).state()


def test_somebody_else_on_that_port():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            peer, _ = other.accept()
            peer.recv(1000)
            peer.sendall(b"220 smtp ready\r\n")
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ServerAway):
            Gateway(f"http://127.0.0.1:{other.getsockname()[1]}").state()


def test_the_poller_tells_what_comes_and_what_does_not(server):
    told, came = [], threading.Event()

    def tell(news):
        told.append(news)
        came.set()

    poller = Poller(Gateway(server.url), tell)
    poller.start()
    assert came.wait(5)
    server.stop()
    came.clear()
    assert came.wait(5)
    poller.end()
    assert told[0] == STATE
    assert isinstance(told[1], ServerAway)
