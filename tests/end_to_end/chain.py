"""The whole chain in one process: the real worker, scheduler and generator over real gRPC sockets."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from batchyard.config import WorkerSettings
from batchyard.rpc import RpcServer
from batchyard.spans import SpanRecorder
from gateway.generation import Generator
from gateway.link import SchedulerLink
from gateway.submission import Limits
from gateway.types import GenerationRequest, SamplingParams
from gpu_worker import service as worker_service
from gpu_worker.engine import StepEngine
from gpu_worker.mover import Mover
from gpu_worker.startup import start_runner
from gpu_worker.threads import single_thread
from gpu_worker.tracing import WorkerSpans
from protos.scheduling_pb2_grpc import add_SchedulerServicer_to_server
from protos.step_pb2_grpc import add_WorkerServicer_to_server
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.lease import Lease
from scheduler.registry import Registry
from scheduler.service import SchedulerService
from scheduler.tracing import RequestSpans
from scheduler.transport import GrpcTransport


class ServedWorker:
    """A worker that can go away and come back, as far as its scheduler can see."""

    def __init__(self, service: worker_service.WorkerService, address: str) -> None:
        self._service = service
        self.address = address

    async def start(self) -> None:
        self._server = RpcServer(self.address)
        self._server.add(add_WorkerServicer_to_server, self._service, worker_service.NAME)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)


class Chain:
    """Ask it for token ids."""

    def __init__(
        self,
        generator: Generator,
        scheduler: Scheduler,
        link: SchedulerLink,
        limits: Limits,
        worker: ServedWorker,
    ) -> None:
        self.generator = generator
        self.scheduler = scheduler
        self.link = link
        self.limits = limits
        self.worker = worker

    async def tokens(self, prompt, max_tokens, **params) -> list[int]:
        params = {"temperature": 0.0, "ignore_eos": True, **params}
        request = GenerationRequest("r", tuple(prompt), SamplingParams(max_tokens=max_tokens, **params))
        ids: list[int] = []
        async with aclosing(self.generator.generate(request)) as pieces:
            async for piece in pieces:
                ids += piece.token_ids
        return ids

    async def together(self, prompts, max_tokens, **params) -> list[list[int]]:
        """All at once."""
        return await asyncio.gather(*(self.tokens(prompt, max_tokens, **params) for prompt in prompts))

    async def in_turn(self, prompts, max_tokens, **params) -> list[list[int]]:
        """One after another."""
        return [await self.tokens(prompt, max_tokens, **params) for prompt in prompts]


@asynccontextmanager
async def chain(
    model: Path | str,
    folder: Path,
    tokenizer,
    steps_in_flight=2,
    caching=True,
    calm=384,
    export=None,
    **settings,
):
    """`settings` are the worker's. `tokenizer` is only needed for text: any will do.

    `export` is told of the spans of scheduler and worker.
    """
    settings = {"model": str(model), "device": "cpu", "cpu_kv_cache_gb": 0.25, **settings}
    step_thread = single_thread("steps")
    loading = step_thread.submit(start_runner, WorkerSettings(**settings), lambda: None)
    runner, description, host_cache = await asyncio.wrap_future(loading)
    observers = [WorkerSpans(SpanRecorder(export), "w")]
    engine = StepEngine(runner, observers, step_thread, Mover(host_cache) if host_cache else None)
    service = worker_service.WorkerService()
    service.set_ready(engine, description, runner.rows)
    worker = ServedWorker(service, f"unix:{folder}/w.sock")
    await worker.start()
    lease = Lease()
    lease.hold(1)
    scheduler = Scheduler(
        [GrpcTransport(worker.address, lease)],
        LaneOptions(steps_in_flight, 60.0, caching, calm),
        RequestSpans(SpanRecorder(export)),
    )
    server = RpcServer(f"unix:{folder}/s.sock")
    registry = Registry(scheduler.fleet, lambda address: GrpcTransport(address, lease))
    scheduler_service = SchedulerService(scheduler, registry, lease)
    server.add(add_SchedulerServicer_to_server, scheduler_service, "batchyard.internal.v1.Scheduler")
    await server.start()
    stepping = asyncio.create_task(scheduler.run())
    try:
        async with SchedulerLink([server.address]) as link:
            async with asyncio.timeout(20):
                while not (link.connected and scheduler.lanes[0].connected):
                    await asyncio.sleep(0.001)
            limits = Limits(description.max_model_len, description.vocab_size)
            yield Chain(Generator(link, tokenizer, limits), scheduler, link, limits, worker)
    finally:
        await server.stop(0)
        stepping.cancel()
        await asyncio.wait([stepping])
        await worker.stop()
        await asyncio.to_thread(engine.shutdown)
