import asyncio
import json

import pytest

from batchyard.errors import ConfigError
from gateway.link import SchedulerLink
from gateway.salts import tenant_salt
from gateway.warm_prompts import load_warm_prompts
from protos.packing import pack_i32, unpack_i32
from protos.scheduling_pb2 import WarmPrompt
from tests.gateway import tiny_tokenizers as tiny
from tests.gateway.fake_scheduler import FakeScheduler, deadline, serving

SYSTEM = "The quick brown fox."


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "warm").write_text(text, "utf-8")
        return load_warm_prompts(tmp_path / "warm", tiny.byte_level())

    return read


def test_a_line_of_text_is_a_system_prompt(read):
    (plain,) = read(f"\n  {SYSTEM}\n\n")
    (chat,) = read(json.dumps({"messages": [{"role": "system", "content": SYSTEM}]}))
    assert plain == chat
    tokens = unpack_i32(plain.tokens).tolist()
    for question in ("a lazy dog?", "1 + 1", "日本語"):
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        rendered = tiny.byte_level().render_chat(turns)
        assert rendered[: len(tokens)] == tokens
    assert tiny.byte_level().decode(tokens, skip_special_tokens=False).endswith("<|turn|>user\n")


def test_all_forms_in_one_file(read):
    chat = [{"role": "user", "content": "How now?"}]
    prompts = read(
        "\n".join(
            [
                json.dumps({"messages": chat, "cache_salt": "tenant", "key_salt": "acme"}),
                json.dumps({"prompt": "def read_lines(path):"}),
                json.dumps({"messages": [*chat, {"role": "assistant", "content": "Brown cow."}]}),
            ]
        )
    )
    tokenizer = tiny.byte_level()
    assert unpack_i32(prompts[0].tokens).tolist() == tokenizer.render_chat(chat)
    # As those of the requests which they are for are made.
    assert [prompt.cache_salt for prompt in prompts] == [tenant_salt("acme", "tenant"), "", ""]
    assert unpack_i32(prompts[1].tokens).tolist() == tokenizer.encode("def read_lines(path):")
    assert "Brown cow." in tokenizer.decode(unpack_i32(prompts[2].tokens))


def test_only_line_feeds_end_lines_and_a_mark_of_utf_8_is_none_of_the_text(read):
    (prompt,) = read("\ufeff" + json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False) + "\r\n")
    assert unpack_i32(prompt.tokens).tolist() == tiny.byte_level().encode("a\u2028b")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[{"role": "system", "content": "b"}]', "line 1 of .*: a list is no prompt"),
        ("fine\n{not json", "line 2 of .*: not JSON"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "line 1 of .*: give either"),
        ('{"cache_salt": "a"}', "give either `messages` or `prompt`"),
        ('{"prompts": "a"}', "prompts: Extra inputs"),
        ('{"prompt": 7}', "prompt: Input should be a valid string"),
        ('{"messages": []}', "messages: List should have at least 1 item"),
        ('{"messages": [{"role": "ghost", "content": "boo"}]}', "messages.0.role: Input should be"),
        ("\n \n", "there is no prompt in"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(read, text, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"warm_prompts: cannot read .*: No such file"):
        load_warm_prompts(tmp_path / "none", tiny.byte_level())
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_warm_prompts(tmp_path / "binary", tiny.byte_level())


async def test_every_scheduler_is_told_before_there_is_a_stream(tmp_path):
    prompt = WarmPrompt(tokens=pack_i32([1, 2]), cache_salt="tenant")
    with deadline():
        first, second = FakeScheduler(), FakeScheduler()
        async with SchedulerLink([f"unix:{tmp_path}/s"], [prompt]) as link:
            for scheduler in (first, second):
                async with serving(scheduler, tmp_path / "s"):
                    await link.wait_connected()
                    assert scheduler.warm_prompts == [prompt]
                while link.connected:
                    await asyncio.sleep(0.001)


async def test_a_scheduler_that_does_not_take_them_is_asked_again(tmp_path):
    prompt = WarmPrompt(tokens=pack_i32([1, 2]))
    with deadline():
        scheduler = FakeScheduler()
        scheduler.refusals = 2
        async with (
            serving(scheduler, tmp_path / "s") as address,
            SchedulerLink([address], [prompt]) as link,
        ):
            await link.wait_connected()
            assert scheduler.warm_prompts == [prompt]
