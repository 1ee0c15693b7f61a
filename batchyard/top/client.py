"""Asks a gateway for the console's state."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from batchyard.errors import BatchyardError, UserError

EVERY_S = 1.0
_PATIENCE_S = 5.0

State = dict[str, Any]


class ServerAway(BatchyardError):
    """No state came now; it may at the next try."""


class Refused(UserError):
    """The server wants another key, or is none of ours."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where it is, and who asks."""

    url: str
    api_key: str | None = None

    def state(self) -> State:
        """The state now, every text in it printable. Raises ServerAway and Refused."""
        request = Request(f"{self.url.rstrip('/')}/console/state")
        if self.api_key:
            request.add_header("Authorization", f"Bearer {self.api_key}")
        try:
            # Servers are named one by one; a proxy from the environment is not meant for them.
            with build_opener(ProxyHandler({})).open(request, timeout=_PATIENCE_S) as response:
                state = json.load(response)
        except HTTPError as error:
            raise _told(self.url, error) from error
        except ValueError as error:
            raise Refused(f"{self.url} has no console: its answer is no JSON") from error
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServerAway(f"{self.url} cannot be reached: {reason}") from error
        printable: State = _printable(state)
        return printable


class Poller:
    """Asks once a second, in a thread: a server that does not answer must not stop the keyboard."""

    def __init__(self, gateway: Gateway, tell: Callable[[State | BatchyardError], object]) -> None:
        """`tell` is called in that thread."""
        self._gateway = gateway
        self._tell = tell
        self._ended = threading.Event()

    def start(self) -> None:
        """Begins to ask."""
        threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        """Nothing is told any more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                told: State | BatchyardError = self._gateway.state()
            except BatchyardError as error:
                told = error
            if not self._ended.is_set():
                self._tell(told)
            self._ended.wait(max(0.0, began + EVERY_S - time.monotonic()))


def _told(url: str, error: HTTPError) -> BatchyardError:
    """What an error in HTTP means."""
    try:
        message = json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        message = f"{url} answers {error.code}"
    if error.code == 401:
        return Refused(f"{_printable(message)} (--api-key, or BATCHYARD_API_KEY)")
    if error.code == 404:
        return Refused(f"{url} has no console")
    return ServerAway(str(_printable(message)))


def _printable(value: Any) -> Any:
    """`value` without what a terminal would take for a command."""
    match value:
        case str():
            return "".join(each if each.isprintable() else "�" for each in value)
        case list():
            return [_printable(item) for item in value]
        case dict():
            return {key: _printable(item) for key, item in value.items()}
    return value
