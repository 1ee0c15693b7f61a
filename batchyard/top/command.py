"""`batchyard top`: the console in a terminal. Ends with q or Ctrl-C."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from batchyard.config import GatewaySettings
from batchyard.errors import ConfigError, UserError
from batchyard.readiness import reachable
from batchyard.settings import load
from batchyard.top.client import Gateway, ServerAway


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as one ConfigError, as all of our commands do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"top: {message.removeprefix('argument ')}")


def main(argv: Sequence[str]) -> None:
    """`argv` is what follows `batchyard top`. Raises UserError."""
    given = _parser().parse_args(list(argv))
    # What the gateway is told says where it is: the same variables and the same file.
    settings = load(GatewaySettings, [], os.environ)
    gateway = Gateway(given.url or _url(settings), given.api_key or settings.api_key)
    if not gateway.url.startswith(("http://", "https://")):
        raise ConfigError(f"top: --url should begin with http:// or https://, not {gateway.url!r}")
    from batchyard.top.screen import Screen, show_once

    if given.once or not sys.stdout.isatty():
        try:
            show_once(gateway)
        except ServerAway as error:
            raise UserError(f"top: {error}") from error
    else:
        asyncio.run(Screen(gateway).run())


def _url(settings: GatewaySettings) -> str:
    host = reachable(settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="batchyard top", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--url", help="of a gateway; default: as its own settings say (http://127.0.0.1:8000)"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="where keys are needed; default: BATCHYARD_API_KEY, which nobody sees",
    )
    parser.add_argument("--once", action="store_true", help="print it once; so it is done where nobody looks")
    return parser
