"""`batchyard drain WORKER`: lets a worker go. Its requests go on elsewhere, and none of them notices."""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from typing import NoReturn

import grpc.aio

from batchyard.config import GatewaySettings
from batchyard.errors import ConfigError, UnknownWorker
from batchyard.rpc import connect
from batchyard.settings import load
from batchyard.tls import internal_tls
from protos.scheduling_pb2 import DrainReply, DrainRequest
from protos.scheduling_pb2_grpc import SchedulerStub

_TIMEOUT_S = 10.0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as one ConfigError, as all of our commands do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"drain: {message.removeprefix('argument ')}")


def main(argv: Sequence[str]) -> None:
    """`argv` is what follows `batchyard drain`. Raises ConfigError, and UnknownWorker."""
    given = _parser().parse_args(list(argv))
    # Where the gateways look: the same variable and the same file say it to them.
    flags = ["--scheduler-address", given.scheduler_address] if given.scheduler_address else []
    settings = load(GatewaySettings, flags, os.environ)
    start = time.monotonic()
    reply = asyncio.run(_ask(settings, DrainRequest(worker=given.worker, undo=given.undo)))
    if given.undo:
        print(f"{reply.worker_id} at {reply.address} is used again")
    else:
        seconds = time.monotonic() - start
        print(
            f"{reply.worker_id} is drained, in {seconds:.2f} s; {reply.moved} requests go on elsewhere.\n"
            f"It is not used again before it is restarted, or before `batchyard drain --undo {given.worker}`."
        )


async def _ask(settings: GatewaySettings, request: DrainRequest) -> DrainReply:
    """The answer of the first scheduler that has the worker: a standby has none."""
    problems = {}
    tls = internal_tls(settings)
    for address in settings.scheduler_address:
        async with connect(address, tls) as channel:
            try:
                return await SchedulerStub(channel).Drain(request, timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                problems[f"the scheduler at {address}: {error.details()}"] = error.code()
    unknown = grpc.StatusCode.NOT_FOUND in problems.values()
    raise (UnknownWorker if unknown else ConfigError)("; ".join(problems))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="batchyard drain", description=__doc__, allow_abbrev=False)
    parser.add_argument("worker", help="its id, or its address if several have that")
    parser.add_argument("--undo", action="store_true", help="the worker is to be used again")
    parser.add_argument(
        "--scheduler-address",
        metavar="ADDRESS",
        help="of the scheduler and its standbys, separated by commas; default: as the gateway's own setting",
    )
    return parser
