import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from batchyard.errors import InvalidRequest, ModelError
from gateway.tokenizing import Tokenizer
from tests.gateway import tiny_tokenizers as tiny

BYTE_LEVEL = tiny.byte_level()
USER = {"role": "user", "content": "How now?"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_folder(tmp_path, tiny.byte_level_backend(), tiny.BEGIN, tiny.END)
    return tmp_path


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere does not exist"):
        Tokenizer.load(tmp_path / "nowhere")


def test_an_empty_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the tokenizer in") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_file_is_refused_in_one_line(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ModelError, match="cannot read the tokenizer in") as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)


def test_end_tokens_come_from_every_file_that_names_them(folder: Path) -> None:
    end = tiny.byte_level_backend().token_to_id(tiny.END)
    assert Tokenizer.load(folder).eos_ids == {end}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 7}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert Tokenizer.load(folder).eos_ids == {end, 7, 8}


@pytest.mark.parametrize("content", ['{"eos_token_id": "x"}', '{"eos_token_id": [true]}', "[]", "{"])
def test_a_bad_generation_config_is_named(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        Tokenizer.load(folder)


def test_tokens_are_those_of_transformers(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    for text in (*tiny.TEXTS[:3], "", " ", f"a{tiny.TURN}b"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert (
            ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        )
    assert ours.vocab_size == len(theirs)


def test_a_text_is_never_cut_though_the_file_asks_for_it(tmp_path: Path) -> None:
    backend = tiny.byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    tiny.write_folder(tmp_path, backend, tiny.BEGIN, tiny.END)
    assert Tokenizer.load(tmp_path).encode("a b c d e f") == tiny.byte_level().encode("a b c d e f")


def test_half_a_surrogate_pair_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        tiny.byte_level().encode("a\ud800")


async def test_a_long_text_does_not_hold_up_the_event_loop() -> None:
    tokenizer = tiny.byte_level()
    text = "".join(tiny.TEXTS) * 60
    encoding = asyncio.create_task(tokenizer.encode_async(text))
    turns = 0
    while not encoding.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert await encoding == tokenizer.encode(text)


async def test_a_short_text_is_encoded_on_the_spot() -> None:
    tokenizer = tiny.byte_level()
    assert await tokenizer.encode_async("brown fox", False) == tokenizer.encode("brown fox", False)


def test_a_conversation_is_rendered_with_one_begin_token() -> None:
    tokenizer = tiny.byte_level()
    ids = tokenizer.render_chat([USER])
    text = f"{tiny.BEGIN}{tiny.TURN}user\nHow now?{tiny.END}{tiny.TURN}assistant\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_options_reach_the_template() -> None:
    tokenizer = tiny.byte_level()
    ids = tokenizer.render_chat([USER], add_generation_prompt=False, tone="Kindly.")
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith(f"{tiny.END}Kindly.")
    answer = {"role": "assistant", "content": "Brown"}
    ids = tokenizer.render_chat([USER, answer], continue_final_message=True)
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("assistant\nBrown")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "ghost", "content": "boo"}], "no ghosts"),
        ([{"role": "user", "content": ["a", "b"]}], "the chat template refused the messages"),
        ([{"role": "user"}], "the chat template refused the messages"),
    ],
)
def test_what_the_template_refuses_is_the_clients_mistake(messages: list[dict], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        tiny.byte_level().render_chat(messages)
    assert caught.value.param == "messages"


def test_the_renderers_own_arguments_are_no_options() -> None:
    with pytest.raises(InvalidRequest, match="'tokenize'"):
        tiny.byte_level().render_chat([USER], tokenize=True)


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        tiny.sentencepiece().render_chat([USER])


async def test_a_long_conversation_is_rendered_as_a_short_one_is() -> None:
    tokenizer = tiny.byte_level()
    for content in ("brown fox", "brown fox " * 1000):
        messages = [{"role": "user", "content": content}]
        assert await tokenizer.render_chat_async(messages) == tokenizer.render_chat(messages)


def test_part_of_a_character_has_bytes_and_a_replacement_for_text() -> None:
    tokenizer = tiny.byte_level()
    token_id = tiny.byte_token(tokenizer, 0xE6)
    assert tokenizer.token_text(token_id) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.token_text(tokenizer.encode(tiny.TURN, False)[0]) == tiny.TURN


def test_decoding_takes_back_the_space_that_encoding_put_first() -> None:
    for tokenizer in (tiny.sentencepiece(), tiny.unigram()):
        for text in ("The quick", " The quick"):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids).lstrip() == "The quick"
        assert tokenizer.decode(tokenizer.encode("fox")) == "fox"


@given(st.text(max_size=200))
@example("e\u0301" * 50)
@example(" " * 200)
def test_a_text_is_never_fewer_tokens_than_its_characters_say(text: str) -> None:
    assert BYTE_LEVEL.least_tokens(len(text)) <= len(BYTE_LEVEL.encode(text, add_special_tokens=False))
    assert BYTE_LEVEL.least_tokens(10_000_000) > 10_000
