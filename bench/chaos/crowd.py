"""One request with more answers than any worker's memory holds at once."""

import asyncio

import grpc.aio

from batchyard.rpc import connect
from bench.chaos.cluster import GATEWAYS, Cluster
from bench.chaos.errors import Unexpected
from bench.chaos.questions import Answer
from protos.inference_pb2 import GenerateRequest
from protos.inference_pb2_grpc import InferenceStub

_TIMEOUT_S = 120.0
_PROMPT = "def crowd(people):\n    "


class Crowd:
    """`choices` answers of `tokens` tokens each: they wait for each other, and all are given in the end."""

    def __init__(self, choices: int, tokens: int) -> None:
        self.choices = choices
        self._request = GenerateRequest(
            model="demo", text=_PROMPT, max_tokens=tokens, n=choices, seed=1, ignore_eos=True
        )
        self._asking: asyncio.Task[Answer] | None = None

    async def arrive(self, cluster: Cluster) -> None:
        """Asks, and does not wait."""
        self._asking = asyncio.create_task(self._ask(cluster.rpc[GATEWAYS[0]]))

    async def leave(self, cluster: Cluster) -> None:
        """Waits for the answers. Raises Unexpected where some are missing or short."""
        if self._asking is None:
            raise AssertionError("nobody has asked")
        try:
            answer = await self._asking
        except grpc.aio.AioRpcError as error:
            raise Unexpected(f"n={self.choices}: {error.code().name}: {error.details()}") from error
        lengths = {len(choice.tokens) for choice in answer.choices.values()}
        if len(answer.choices) != self.choices or lengths != {self._request.max_tokens}:
            raise Unexpected(f"n={self.choices}: {len(answer.choices)} answers of {sorted(lengths)} tokens")

    async def _ask(self, address: str) -> Answer:
        answer = Answer()
        async with connect(address) as channel:
            async for piece in InferenceStub(channel).Generate(self._request, timeout=_TIMEOUT_S):
                answer.add(piece)
        return answer
