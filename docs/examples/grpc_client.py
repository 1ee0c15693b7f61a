"""Batchyard's gRPC API in one file: `python docs/examples/grpc_client.py --address 127.0.0.1:8001`.

Needs `grpcio`, `protobuf` and the generated modules in `protos/`, or your own from `protos/inference.proto`.
"""

import argparse
import asyncio
from collections.abc import AsyncIterable
from pathlib import Path

import grpc
import grpc.aio

from protos.inference_pb2 import Chat, ChatMessage, GenerateRequest, GenerateResponse, ModelsRequest, TokenIds
from protos.inference_pb2_grpc import InferenceStub

TIMEOUT_S = 60.0


class Client:
    """The calls, with the key that the service may want."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str | None) -> None:
        self._stub = InferenceStub(channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def model(self) -> str:
        """The name of the model served."""
        answer = await self._stub.Models(ModelsRequest(), metadata=self._metadata, timeout=TIMEOUT_S)
        model = answer.models[0]
        print(f"model: {model.id}, {model.max_model_len} tokens of prompt and answer")
        return model.id

    def generate(
        self, request: GenerateRequest
    ) -> grpc.aio.UnaryStreamCall[GenerateRequest, GenerateResponse]:
        """The pieces of the answer as they come. The timeout is for the whole answer."""
        return self._stub.Generate(request, metadata=self._metadata, timeout=TIMEOUT_S)


async def show(pieces: AsyncIterable[GenerateResponse]) -> list[int]:
    """Prints the text as it comes, and what it cost; returns the tokens."""
    token_ids: list[int] = []
    async for piece in pieces:
        print(piece.text, end="", flush=True)
        token_ids += piece.token_ids
        if piece.finish_reason:
            print(f"\n[ended: {piece.finish_reason}]")
        if piece.HasField("usage"):  # on the last piece
            usage = piece.usage
            print(f"[{usage.prompt_tokens} tokens read, {usage.completion_tokens} written]\n")
    return token_ids


async def chat(client: Client, model: str) -> None:
    """Messages, rendered with the model's chat template."""
    print("chat:")
    messages = [ChatMessage(role="user", content="What does os.path.join do?")]
    request = GenerateRequest(model=model, chat=Chat(messages=messages), max_tokens=200, temperature=0)
    await show(client.generate(request))


async def text_and_token_ids(client: Client, model: str) -> None:
    """A text to continue; then token ids, which nobody has to tokenize again."""
    print("text:")
    request = GenerateRequest(model=model, text="def read_lines(path):", max_tokens=24, temperature=0)
    written = await show(client.generate(request))
    print("token ids:")
    request = GenerateRequest(model=model, token_ids=TokenIds(ids=written), max_tokens=24, temperature=0)
    await show(client.generate(request))


async def several_choices(client: Client, model: str) -> None:
    """Choices come interleaved, each piece with the index of its choice; a seed makes them repeatable."""
    texts = ["", ""]
    request = GenerateRequest(model=model, text="import ", max_tokens=8, temperature=0.9, seed=7, n=2)
    async for piece in client.generate(request):
        texts[piece.index] += piece.text
    print(f"choices: {texts}")


async def cancel(client: Client, model: str) -> None:
    """Closing the stream ends the work within a step, and frees all that it held."""
    pieces = client.generate(GenerateRequest(model=model, text="import os", max_tokens=1000, ignore_eos=True))
    async for piece in pieces:
        print(f"cancelled after {len(piece.token_ids)} of 1000 tokens")
        break
    pieces.cancel()


async def errors(client: Client, model: str) -> None:
    """An error is a status code, and a message that says what to mend."""
    for request in (
        GenerateRequest(model="another", text="Hello"),
        GenerateRequest(model=model, text="Hello", temperature=-1),
    ):
        try:
            await show(client.generate(request))
        except grpc.aio.AioRpcError as error:
            print(f"error: {error.code().name}: {error.details()}")


def connect(address: str, tls: bool, ca: Path | None) -> grpc.aio.Channel:
    """A channel, over TLS where that is asked for."""
    if not (tls or ca):
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes() if ca else None))


async def main() -> None:
    """Shows everything once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:8001")
    parser.add_argument("--api-key", help="what the service was started with, if it was")
    parser.add_argument("--tls", action="store_true", help="the service was started with --ssl-certfile")
    parser.add_argument("--ca", type=Path, help="whose certificate it has, if not a public authority's")
    options = parser.parse_args()
    async with connect(options.address, options.tls, options.ca) as channel:
        client = Client(channel, options.api_key)
        model = await client.model()
        await chat(client, model)
        await text_and_token_ids(client, model)
        await several_choices(client, model)
        await cancel(client, model)
        await errors(client, model)


if __name__ == "__main__":
    asyncio.run(main())
