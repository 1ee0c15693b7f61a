"""`batchyard keys add|list|revoke`: gives out API keys and takes them back. Gateways notice in a second."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from batchyard.config import GatewaySettings
from batchyard.errors import ConfigError
from batchyard.settings import load
from gateway.keys.records import KeyRecord, new_key, record_for
from gateway.keys.stores import KeyStore, open_store

_NOT_PROMISES = ("name", "sha256", "created")
_PROMISES = {name: field for name, field in KeyRecord.model_fields.items() if name not in _NOT_PROMISES}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as one ConfigError, as all of our commands do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"keys: {message.removeprefix('argument ')}")


def main(argv: Sequence[str]) -> None:
    """`argv` is what follows `batchyard keys`. Raises ConfigError, and KeysAway where Redis is."""
    given = _parser().parse_args(list(argv))
    # Where the gateways look: the same variable and the same file say it to them.
    where = given.api_keys or load(GatewaySettings, [], os.environ).api_keys
    if where is None:
        raise ConfigError("keys: say where they are: --api-keys FILE, or a Redis URL")
    asyncio.run(_run(given, where))


async def _run(given: argparse.Namespace, where: str) -> None:
    store = open_store(where)
    try:
        await {"add": _add, "list": _list, "revoke": _revoke}[given.action](store, given)
    finally:
        await store.close()


async def _add(store: KeyStore, given: argparse.Namespace) -> None:
    key = new_key()
    promises = {name: value for name in _PROMISES if (value := getattr(given, name)) is not None}
    await store.add(record_for(key, datetime.now(UTC).replace(microsecond=0), given.name, **promises))
    # The key alone on standard output, so that it can be piped to where it is needed.
    print(key)
    print(f"This is the key of {given.name}. It is not kept and cannot be shown again.", file=sys.stderr)


async def _list(store: KeyStore, given: argparse.Namespace) -> None:
    records = await store.poll() or ()
    width = max((len(record.name) for record in records), default=0)
    for record in records:
        promises = record.model_dump(include=set(_PROMISES), exclude_defaults=True)
        told = " ".join(f"{name}={value}" for name, value in promises.items()) or "no limits"
        print(f"{record.name:<{width}}  {record.created:%Y-%m-%d}  {told}")


async def _revoke(store: KeyStore, given: argparse.Namespace) -> None:
    if not await store.revoke(given.name):
        raise ConfigError(f"there is no key named {given.name!r}")
    print(f"The key of {given.name} is revoked.", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="batchyard keys", description=__doc__, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|revoke")
    for action, text in (
        ("add", "make a key and print it, once"),
        ("list", "names, dates and limits"),
        ("revoke", "make a key worthless"),
    ):
        # Wide, so that each limit is one line.
        sub = actions.add_parser(
            action,
            help=text,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=44, width=180),
        )
        sub.add_argument(
            "--api-keys", metavar="WHERE", help="file or Redis URL; default: as the gateway's own setting"
        )
        if action != "list":
            sub.add_argument("name", help="of the key's holder, in logs, metrics and traces")
        if action == "add":
            for name, field in _PROMISES.items():
                flag = f"--{name.replace('_', '-')}"
                if field.annotation is bool:
                    sub.add_argument(flag, action="store_const", const=True, help=field.description)
                    continue
                default = "" if field.default in (None, "") else f" (default: {field.default})"
                sub.add_argument(flag, metavar="N", help=f"{field.description}{default}")
    return parser
