"""A request that kills every worker it is given to, as a prompt that drives a kernel out of bounds would."""

import asyncio
import signal
from collections.abc import Mapping

import grpc.aio

from batchyard.rpc import connect
from bench.chaos.cluster import GATEWAYS, WORKERS, Cluster
from bench.chaos.errors import Unexpected
from bench.chaos.orders import POISON
from protos.inference_pb2 import GenerateRequest, TokenIds
from protos.inference_pb2_grpc import InferenceStub

_TIMEOUT_S = 120.0
_FULL_S = 90.0
_LOOK_S = 0.2  # between looks for workers that have died
_BLAMED = "workers were lost at the same place of this request"
_MOST_DEATHS = 3  # the last one while it ran alone


class Poison:
    """Asks once. Workers that die are started again, as a supervisor does."""

    def __init__(self) -> None:
        self.deaths = 0
        self._request = GenerateRequest(
            model="demo", token_ids=TokenIds(ids=[*POISON, 5, 6, 7]), max_tokens=8, temperature=0
        )

    async def swallow(self, cluster: Cluster) -> None:
        """Returns when the request has failed and its workers are back.

        Raises Unexpected where it did not fail, or took more workers, TimeoutError where they do not come.
        """
        self.deaths = 0
        supervising = asyncio.create_task(self._supervise(cluster))
        try:
            words = await self._ask(cluster.rpc)
            # The one that died last is known to the scheduler before it is known to us.
            await cluster.full(_FULL_S)
        finally:
            supervising.cancel()
            await asyncio.wait([supervising])
        if not supervising.cancelled():
            await supervising
        if _BLAMED not in words:
            raise Unexpected(f"poison: {words}")
        if self.deaths > _MOST_DEATHS:
            raise Unexpected(f"poison: {self.deaths} workers died")

    async def _ask(self, addresses: Mapping[str, str]) -> str:
        async with connect(addresses[GATEWAYS[0]]) as channel:
            try:
                async for _ in InferenceStub(channel).Generate(self._request, timeout=_TIMEOUT_S):
                    pass
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
        return "it was answered"

    async def _supervise(self, cluster: Cluster) -> None:
        while True:
            self._restart(cluster)
            await asyncio.sleep(_LOOK_S)

    def _restart(self, cluster: Cluster) -> None:
        for name in WORKERS:
            if cluster.processes[name].poll() is None:
                continue
            code = cluster.forget(name)
            self.deaths += 1
            cluster.start(name)
            if code != -signal.SIGKILL:
                raise Unexpected(f"{name} ended with {code}, and not by poison")
