"""The worker's gRPC service over a real socket, with a real model."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from batchyard.fence import metadata
from batchyard.rpc import RpcServer, connect
from gpu_worker.engine import Broken, StepEngine
from gpu_worker.metrics import WorkerMetrics
from gpu_worker.service import NAME, WorkerService
from protos.packing import unpack_u32
from protos.step_pb2 import DescribeWorkerRequest, WorkerDescription
from protos.step_pb2_grpc import WorkerStub, add_WorkerServicer_to_server
from tests.gpu_worker.helpers import batch, greedy, new_row, random_prompts, sampled_of

DEADLINE = 10


class Worker:
    """A served worker, whose steps can be held back."""

    def __init__(self, runner, folder):
        self.runner = runner
        self.step_thread = ThreadPoolExecutor(1)
        self.metrics = WorkerMetrics(num_blocks=32)
        self.engine = StepEngine(runner, [self.metrics], self.step_thread)
        self.service = WorkerService()
        self.server = RpcServer(f"unix:{folder}/worker.sock")
        self.server.add(add_WorkerServicer_to_server, self.service, NAME)

    def set_ready(self):
        self.service.set_ready(self.engine, WorkerDescription(worker_id="w", num_blocks=32), self.runner.rows)

    async def idle(self):
        """Until all the step thread was given before is done."""
        await asyncio.wrap_future(self.step_thread.submit(lambda: None))

    async def until_free(self):
        async with asyncio.timeout(DEADLINE):
            while self.runner.rows.num_active:
                await asyncio.sleep(0)

    async def until_observed(self, name, value):
        """Observers hear of a step after its answer has left."""
        async with asyncio.timeout(DEADLINE):
            while self.metric(name) != value:
                await asyncio.sleep(0)

    def metric(self, name):
        return self.metrics.registry.get_sample_value(name)


@pytest.fixture
async def worker(runner, tmp_path):
    worker = Worker(runner, tmp_path)
    await worker.server.start()
    yield worker
    await worker.server.stop(0)
    worker.engine.shutdown()
    worker.step_thread.shutdown()


@pytest.fixture
async def stub(worker):
    worker.set_ready()
    async with connect(worker.server.address) as channel, asyncio.timeout(DEADLINE):
        yield WorkerStub(channel)


async def status_of(call):
    async with asyncio.timeout(DEADLINE):
        return await call.code(), await call.details()


async def test_unavailable_until_ready(worker):
    async with connect(worker.server.address) as channel, asyncio.timeout(DEADLINE):
        stub = WorkerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="still loading") as refused:
            await stub.Describe(DescribeWorkerRequest())
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        steps = stub.Steps()
        assert await status_of(steps) == (grpc.StatusCode.UNAVAILABLE, "the worker is still loading")
        worker.set_ready()
        assert (await stub.Describe(DescribeWorkerRequest())).worker_id == "w"


async def test_describe_counts_how_often_blocks_are_given_out(stub, worker):
    before = await stub.Describe(DescribeWorkerRequest())
    assert unpack_u32(before.block_generations).tolist() == [0] * 32
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, [1, 2], [4, 7])]))
    await steps.read()
    after = await stub.Describe(DescribeWorkerRequest())
    assert [i for i, n in enumerate(unpack_u32(after.block_generations)) if n] == [4, 7]


async def test_steps_are_answered_in_order_and_the_stream_ends_when_asked(stub, worker, tiny_llama):
    prompt, other = random_prompts(9, 5)
    steps = stub.Steps()
    entries = [new_row(0, prompt, [0, 1, 2]), new_row(3, other, [3, 4])]
    await steps.write(batch(1, entries, chunks=[(0, 9), (3, 5)]))
    for step in range(2, 9):  # sent ahead, however many
        await steps.write(batch(step))
    await steps.done_writing()
    results = [result async for result in steps]
    assert [result.step for result in results] == list(range(1, 9))
    assert [sampled_of(result)[0] for result in results] == greedy(tiny_llama[1], prompt, 8)
    assert [sampled_of(result)[3] for result in results] == greedy(tiny_llama[1], other, 8)
    assert (await status_of(steps))[0] == grpc.StatusCode.OK
    await worker.until_free()
    assert worker.metric("batchyard_worker_steps_total") == 8
    assert worker.metric("batchyard_worker_tokens_total") == 14 + 7 * 2


async def test_a_second_stream_takes_over(stub, worker):
    first = stub.Steps()
    await first.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    assert (await first.read()).step == 1
    # Steps of the first stream that have not begun when the second comes are dropped.
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    held = worker.step_thread.submit(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result())
    await first.write(batch(2))
    second = stub.Steps()
    await second.write(batch(1, [new_row(0, [5, 6, 7], [1])], chunks=[(0, 3)]))
    code, details = await status_of(first)
    assert code == grpc.StatusCode.ABORTED
    assert details == "another stream has taken this worker over"
    gate.set()
    result = await second.read()
    assert (result.step, list(sampled_of(result)), result.num_tokens) == (1, [0], 3)
    await worker.idle()
    assert held.done()
    assert worker.runner.rows.num_active == 1


async def test_what_the_protocol_forbids_ends_the_stream_only(stub, worker):
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    await steps.write(batch(2, chunks=[(2, 1)]))
    await steps.write(batch(3))
    results = []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        results += [result async for result in steps]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "step 2: chunk row 2 is unknown"
    await worker.until_free()
    again = stub.Steps()
    await again.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    assert (await again.read()).step == 1


async def test_results_before_the_refusal_arrive(stub):
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    await steps.write(batch(7))
    assert (await steps.read()).step == 1
    assert (await status_of(steps))[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_failure_ends_the_stream_and_the_worker_lives_on(stub, worker, monkeypatch):
    def fail(*args):
        raise ValueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(worker.runner.model, "logits", fail)
        steps = stub.Steps()
        await steps.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
        assert await status_of(steps) == (grpc.StatusCode.INTERNAL, "step 1 failed: ValueError: broken")
    again = stub.Steps()
    await again.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    assert (await again.read()).step == 1


async def test_rows_are_freed_when_the_scheduler_goes_away(stub, worker):
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    await steps.read()
    assert worker.runner.rows.num_active == 1
    await worker.until_observed("batchyard_worker_rows", 1)
    assert worker.metric("batchyard_worker_held_blocks") == 1
    steps.cancel()
    await worker.until_free()


async def test_a_worker_that_leaves_asks_the_scheduler_to_close_the_stream_and_takes_no_other(stub, worker):
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    assert (await steps.read()).step == 1
    leaving = asyncio.create_task(worker.engine.leave(DEADLINE))
    assert (await steps.read()).leaving
    assert not leaving.done()
    other = stub.Steps()
    assert await status_of(other) == (grpc.StatusCode.UNAVAILABLE, "the worker is leaving")
    await steps.write(batch(2))  # what was on its way is answered
    assert (await steps.read()).step == 2
    steps.cancel()
    await leaving
    await worker.until_free()
    await worker.engine.leave(DEADLINE)  # nobody has it: at once


async def test_a_worker_that_leaves_does_not_wait_for_ever(stub, worker):
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)]))
    await steps.read()
    await worker.engine.leave(0.01)
    assert (await steps.read()).leaving


async def test_a_worker_whose_steps_do_not_come_back_says_so(stub, worker):
    assert await worker.engine.responds(DEADLINE)
    gate = threading.Event()
    worker.step_thread.submit(gate.wait)
    assert not await worker.engine.responds(0.01)
    gate.set()
    assert await worker.engine.responds(DEADLINE)


async def test_only_the_last_scheduler_may_step(stub, worker):
    def steps(fence):
        return stub.Steps(metadata=metadata(fence))

    assert not (await stub.Describe(DescribeWorkerRequest())).stepped
    old, first = steps(5), batch(1, [new_row(0, [1, 2], [0])], chunks=[(0, 2)])
    await old.write(first)
    assert (await old.read()).step == 1
    description = await stub.Describe(DescribeWorkerRequest())
    assert (description.fence, description.stepped) == (5, True)
    new = steps(6)
    await new.write(first)
    assert (await status_of(old))[0] == grpc.StatusCode.ABORTED
    assert (await new.read()).step == 1
    # The one before, and one that knows of no fences, get nothing and disturb nothing.
    for late in (steps(5), stub.Steps()):
        code, details = await status_of(late)
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert details.endswith("is outranked by 6")
    await new.write(batch(2))
    assert (await new.read()).step == 2
    # The last one may come again.
    again = steps(6)
    await again.write(first)
    assert (await again.read()).step == 1
    assert (await stub.Describe(DescribeWorkerRequest())).fence == 6


async def test_a_step_that_does_not_end_is_noticed_when_the_next_stream_comes(stub, worker, monkeypatch):
    monkeypatch.setattr("gpu_worker.engine.STUCK_S", 0.05)
    ends = threading.Event()
    worker.step_thread.submit(ends.wait, DEADLINE)
    steps = stub.Steps()
    assert await asyncio.wrap_future(worker.engine.broken) == Broken.STUCK
    ends.set()
    steps.cancel()
