"""The gRPC API on a real channel."""

import asyncio
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from batchyard.errors import InvalidRequest, Overloaded, SchedulerLost, WorkerLost
from batchyard.rpc import RpcServer, connect
from gateway.console.journal import Journal
from gateway.keys.records import record_for
from gateway.keys.ring import KeyRing
from gateway.limits.door import Door
from gateway.limits.limiter import LocalLimiter
from gateway.metrics import Metrics
from gateway.request_trace import Traces
from gateway.rpc_service import SERVICE, RpcInference
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import InferenceStub, add_InferenceServicer_to_server
from tests.gateway.api_fakes import MAX_MODEL_LEN, FakeGenerator, make_service
from tests.gateway.test_connection import Flood

DEADLINE_S = 10


@pytest.fixture
async def serve(tmp_path):
    """Starts a server and gives a stub."""
    servers, channels = [], []

    async def start(generator=None, api_key=None, keys=None, limiter=None, client_timeout_s=60, **changes):
        service = make_service(generator, **changes)
        metrics = Metrics()
        door = Door(limiter or LocalLimiter(), metrics)
        keys = keys or KeyRing(fixed=api_key)
        inference = RpcInference(service, keys, door, Traces(), metrics, start.journal, client_timeout_s)
        server = RpcServer(f"unix:{tmp_path}/gateway.sock")
        server.add(add_InferenceServicer_to_server, inference, SERVICE)
        await server.start()
        servers.append(server)
        channels.append(connect(server.address))
        return InferenceStub(channels[-1])

    start.journal = Journal()
    yield start
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0)


async def collect(stub, metadata=None, **fields):
    request = pb.GenerateRequest(**({"model": "demo"} | fields))
    return [response async for response in stub.Generate(request, metadata=metadata, timeout=DEADLINE_S)]


async def refused(stub, metadata=None, **fields) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, metadata, **fields)
    return caught.value


async def test_text(serve):
    generator = FakeGenerator()
    responses = await collect(await serve(generator), text="hi")
    assert "".join(response.text for response in responses) == "Hello wörld!"
    assert [list(response.token_ids) for response in responses] == [[0], [1], [2], [3]]
    assert [response.finish_reason for response in responses] == ["", "", "", "stop"]
    assert [response.HasField("usage") for response in responses] == [False, False, False, True]
    assert responses[-1].usage == pb.Usage(prompt_tokens=2, completion_tokens=4, cached_tokens=2)
    assert generator.requests[0].params.max_tokens == MAX_MODEL_LEN - 2
    (record,) = serve.journal.remembered().requests
    assert (record.route, record.status, record.completion_tokens) == (
        "batchyard.v1.Inference/Generate",
        "OK",
        4,
    )


async def test_token_ids_and_parameters(serve):
    generator = FakeGenerator()
    await collect(
        await serve(generator),
        token_ids=pb.TokenIds(ids=[5, 6]),
        max_tokens=3,
        temperature=0,
        top_k=7,
        seed=-1,
        stop=["a", "b"],
        stop_token_ids=[9],
        ignore_eos=True,
        min_tokens=2,
        logit_bias={4: -1.5},
    )
    [request] = generator.requests
    params = request.params
    assert request.prompt_ids == (5, 6)
    assert (params.max_tokens, params.temperature, params.top_k, params.seed) == (3, 0.0, 7, 2**64 - 1)
    assert (params.stop, params.stop_token_ids, params.min_tokens) == (("a", "b"), (9,), 2)
    assert params.ignore_eos
    assert params.logit_bias == {4: -1.5}


async def test_chat(serve):
    generator = FakeGenerator()
    chat = pb.Chat(messages=[pb.ChatMessage(role="developer", content="be kind")])
    await collect(await serve(generator), chat=chat)
    assert bytes(generator.requests[0].prompt_ids) == b"system: be kind\n"


async def test_choices_and_logprobs(serve):
    generator = FakeGenerator()
    responses = await collect(await serve(generator), text="hi", n=3, logprobs=2, seed=1)
    assert {response.index for response in responses} == {0, 1, 2}
    assert len({request.params.seed for request in generator.requests}) == 3
    assert sum(response.HasField("usage") for response in responses) == 1
    assert responses[-1].usage.completion_tokens == 12
    [logprob] = responses[0].logprobs
    assert (logprob.token_id, logprob.logprob) == (1, -0.5)
    assert [alternative.logprob for alternative in logprob.top] == [-1, -2]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "'prompt'"),
        ({"text": "x", "temperature": 3}, "'temperature'"),
        ({"text": "x", "temperature": float("nan")}, "'temperature'"),
        ({"text": "x", "n": 0}, "'n'"),
        ({"text": "x", "max_tokens": 0}, "'max_tokens'"),
        ({"text": "x", "stop": [""]}, "'stop[0]'"),
        ({"text": "x", "logit_bias": {-1: 1}}, "'logit_bias.-1'"),
        ({"text": "x", "logit_bias": {999: 1}}, "logit_bias"),
        ({"text": "x", "logprobs": 21}, "'logprobs'"),
        ({"text": "x", "max_tokens": 1, "min_tokens": 2}, "min_tokens"),
        ({"chat": pb.Chat()}, "'messages'"),
        ({"chat": pb.Chat(messages=[pb.ChatMessage(role="tool", content="x")])}, "'messages[0].role'"),
    ],
)
async def test_invalid_arguments(serve, fields, told):
    error = await refused(await serve(), **fields)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert told in error.details()


async def test_a_field_of_another_version_is_refused(serve):
    proto = descriptor_pb2.FileDescriptorProto(name="other.proto", package="other")
    message = proto.message_type.add(name="Newer")
    kind = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="model", number=1, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL)
    message.field.add(name="best_of", number=99, type=kind.TYPE_INT32, label=kind.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    newer = message_factory.GetMessageClass(pool.FindMessageTypeByName("other.Newer"))(
        model="demo", best_of=2
    )
    request = pb.GenerateRequest.FromString(newer.SerializeToString())
    stub = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(request, timeout=DEADLINE_S):
            pass
    assert "99" in caught.value.details()


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("too long"), grpc.StatusCode.INVALID_ARGUMENT),
        (Overloaded("full", 3), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (SchedulerLost("away"), grpc.StatusCode.UNAVAILABLE),
        (WorkerLost("gone"), grpc.StatusCode.INTERNAL),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_errors(serve, error, status, after):
    told = await refused(await serve(FakeGenerator(fails_with=error, fails_after=after)), text="x")
    assert told.code() == status
    assert "secret" not in told.details()
    if isinstance(error, Overloaded):
        assert ("retry-after", "3") in list(told.trailing_metadata())


async def test_unknown_models(serve):
    assert (await refused(await serve(), model="nope", text="x")).code() == grpc.StatusCode.NOT_FOUND


async def test_the_key(serve):
    stub = await serve(api_key="k")
    good, bad = [("authorization", "Bearer k")], [("authorization", "Bearer x")]
    for metadata in (None, bad):
        assert (await refused(stub, metadata, text="x")).code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Models(pb.ModelsRequest(), metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert await collect(stub, good, text="x")
    assert (await stub.Models(pb.ModelsRequest(), metadata=good)).models


async def test_models(serve):
    stub = await serve()
    [model] = (await stub.Models(pb.ModelsRequest(), timeout=DEADLINE_S)).models
    assert model == pb.Model(id="demo", max_model_len=4096)


async def test_models_before_there_is_a_worker(serve):
    async def lost():
        raise SchedulerLost("away")

    stub = await serve(backend=lost)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Models(pb.ModelsRequest(), timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("n", [1, 3])
async def test_hanging_up_cancels(serve, n):
    generator = FakeGenerator(hangs_after=1)
    with structlog.testing.capture_logs() as lines:
        stub = await serve(generator)
        call = stub.Generate(pb.GenerateRequest(model="demo", text="x", n=n), timeout=DEADLINE_S)
        assert (await call.read()).text == "Hel"
        call.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await generator.closed.wait()
            while not lines:
                await asyncio.sleep(0)
    assert generator.running == 0
    assert [line["status"] for line in lines] == ["CANCELLED"]


async def test_request_ids_and_traces(serve):
    generator = FakeGenerator()
    stub = await serve(generator)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = [("x-request-id", "mine"), ("traceparent", parent)]
    call = stub.Generate(pb.GenerateRequest(model="demo", text="x"), metadata=metadata, timeout=DEADLINE_S)
    responses = [response async for response in call]
    assert {response.id for response in responses} == {"mine"}
    assert ("x-request-id", "mine") in list(await call.initial_metadata())
    assert generator.requests[0].traceparent == parent  # there is no span of our own to stand in between


async def stalled(stub):
    """A call whose answer is read once and then no more."""
    call = stub.Generate(pb.GenerateRequest(model="demo", text="hi"))
    await anext(aiter(call))
    return call


async def test_a_client_that_does_not_read_loses_its_request(serve):
    flood = Flood()
    call = await stalled(await serve(flood, client_timeout_s=0.2))
    async with asyncio.timeout(DEADLINE_S):
        await flood.closed.wait()
    assert flood.given < 20_000
    call.cancel()


async def test_a_client_that_goes_while_it_does_not_read_is_no_fault_of_ours(serve):
    flood = Flood()
    with structlog.testing.capture_logs() as lines:
        call = await stalled(await serve(flood))
        given = 0
        async with asyncio.timeout(DEADLINE_S):
            while given < flood.given:  # until no more is taken
                given = flood.given
                await asyncio.sleep(0.05)
            call.cancel()
            await flood.closed.wait()
            while not lines:
                await asyncio.sleep(0.01)
    assert [(line["event"], line["status"], line["error"]) for line in lines] == [
        ("request", "CANCELLED", None)
    ]


async def test_limits_are_told_in_metadata(serve):
    record = record_for("k", datetime(2026, 1, 2, tzinfo=UTC), "alice", requests_per_minute=1)
    store = FixedKeys((record,))
    keys = KeyRing(store)
    await keys.read()
    generator = FakeGenerator()
    stub = await serve(generator, keys=keys)
    assert (await refused(stub, text="hi")).code() == grpc.StatusCode.UNAUTHENTICATED
    mine = [("authorization", "Bearer k")]
    call = stub.Generate(pb.GenerateRequest(model="demo", text="hi", priority=3, timeout=9), metadata=mine)
    assert [response async for response in call]
    assert ("x-ratelimit-remaining-requests", "0") in list(await call.initial_metadata())
    terms = generator.requests[0].terms
    assert (terms.tenant.name, terms.priority) == ("alice", 3)
    assert terms.deadline is not None
    error = await refused(stub, metadata=mine, text="hi")
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(error.trailing_metadata())
    assert 0 < int(trailing["retry-after"]) <= 61
    assert trailing["x-ratelimit-limit-requests"] == "1"
    error = await refused(stub, metadata=mine, text="hi", priority=-1)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


class FixedKeys:
    """A store that has some keys."""

    def __init__(self, records) -> None:
        self._records = records

    async def poll(self):
        return self._records
