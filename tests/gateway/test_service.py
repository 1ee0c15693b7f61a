"""What is refused before it is encoded."""

import pytest

from batchyard.errors import InvalidRequest
from gateway.errors import reply_to
from gateway.service import Backend, Service
from gateway.submission import Limits
from protos.scheduling_pb2 import Description
from tests.gateway.api_fakes import FakeGenerator, FakeTokenizer


class Unused(FakeTokenizer):
    async def encode_async(self, text: str) -> list[int]:
        raise AssertionError("this should not have been encoded")


def service_of(tokenizer: FakeTokenizer) -> Service:
    async def backend() -> Backend:
        return Backend(FakeGenerator(), Limits(max_model_len=100, vocab_size=256))

    async def describe() -> Description:
        return Description()

    return Service("demo", tokenizer, backend, describe)


async def test_what_cannot_fit_is_refused_without_encoding_it() -> None:
    service = service_of(Unused())
    turns = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y" * 104}]
    for refused in (service.prompt_ids("x" * 404), service.chat_ids(turns)):
        with pytest.raises(InvalidRequest, match="404 characters, at least 101 tokens") as caught:
            await refused
        assert reply_to(caught.value).code == "context_length_exceeded"


async def test_what_may_fit_is_encoded_and_token_ids_are_taken_as_they_are() -> None:
    assert len(await service_of(FakeTokenizer()).prompt_ids("x" * 403)) == 403
    assert await service_of(Unused()).prompt_ids([1, 2]) == (1, 2)
