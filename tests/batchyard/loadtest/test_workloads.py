"""Synthetic prompts, conversations, traces and datasets."""

import json
from pathlib import Path

import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.datasets import Dataset, read_dataset
from batchyard.loadtest.lengths import parse_lengths
from batchyard.loadtest.prompts import TokenIds, Words
from batchyard.loadtest.synthetic import Conversations, SharedPrefix, Synthetic
from batchyard.loadtest.traces import Replay, is_trace, read_trace

IDS = TokenIds(1000, 5000)


def lengths(text):
    return parse_lengths(text, "--input")


class TestSynthetic:
    workload = Synthetic(IDS, lengths("10-20"), lengths("4"), SharedPrefix(64, count=3, share=0.5))

    def test_the_same_for_the_same_seed(self):
        again = list(self.workload.sessions(20, seed=5))
        assert list(self.workload.sessions(20, seed=5)) == again
        assert list(self.workload.sessions(20, seed=6)) != again

    def test_prefixes_are_shared_by_the_share_that_was_asked_for(self):
        prompts = [session.content for session in self.workload.sessions(400, seed=0)]
        shared = [tuple(prompt[:64]) for prompt in prompts if len(prompt) > 64]
        assert len(set(shared)) == 3
        assert len(shared) == pytest.approx(200, abs=40)
        assert all(10 <= len(prompt) <= 20 for prompt in prompts if len(prompt) < 64)

    def test_strangers_share_nothing_with_it(self):
        mine = {tuple(session.content[:8]) for session in self.workload.sessions(50, seed=0)}
        theirs = {tuple(session.content[:8]) for session in self.workload.strangers(50, seed=0)}
        assert not mine & theirs

    def test_input_tokens(self):
        (session,) = Synthetic(IDS, lengths("9"), lengths("4")).sessions(1, 0)
        assert (session.input_tokens, session.max_tokens) == (9, 4)

    def test_chat(self):
        (session,) = Synthetic(Words(), lengths("9"), lengths("4"), chat=True).sessions(1, 0)
        assert [message["role"] for message in session.content] == ["user"]
        assert session.input_tokens == 0


def test_conversations():
    workload = Conversations(lengths("3"), lengths("5"), lengths("7"), system_tokens=11, think_s=2.0)
    sessions = list(workload.sessions(100, seed=0))
    assert len({session.content[0]["content"] for session in sessions}) == 1
    assert [message["role"] for message in sessions[0].content] == ["system", "user"]
    assert all(len(session.turns) == 2 for session in sessions)
    thought = [turn.think_s for session in sessions for turn in session.turns]
    assert sum(thought) / len(thought) == pytest.approx(2.0, rel=0.3)
    assert all(not session.turns for session in workload.strangers(3, seed=0))


MOONCAKE = [
    {"timestamp": 2000, "input_length": 1300, "output_length": 50, "hash_ids": [0, 1, 3]},
    {"timestamp": 0, "input_length": 1200, "output_length": 20, "hash_ids": [0, 1, 2]},
    {"timestamp": 4000, "input_length": 600, "output_length": 9, "hash_ids": [0, 9]},
]


class TestTraces:
    @pytest.fixture
    def mooncake(self, tmp_path):
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(map(json.dumps, MOONCAKE)))
        return path

    def test_prompts_share_what_their_blocks_say(self, mooncake):
        sessions = list(Replay(read_trace(mooncake), IDS).sessions(3, seed=0))
        first, second, third = (session.content for session in sessions)
        assert [len(first), len(second), len(third)] == [1200, 1300, 600]
        assert first[:1024] == second[:1024]
        assert first[1024:] != second[1024:1200]
        assert first[:512] == third[:512]
        assert first[512:600] != third[512:600]
        assert [session.max_tokens for session in sessions] == [20, 50, 9]

    def test_times_begin_at_zero_and_are_sped_up(self, mooncake):
        sessions = Replay(read_trace(mooncake), IDS, speed=4).sessions(3, seed=0)
        assert [session.at for session in sessions] == [0.0, 0.5, 1.0]

    def test_scaled_prompts_share_their_scaled_blocks(self, mooncake):
        replay = Replay(read_trace(mooncake), IDS, scale=1 / 16, max_output=2)
        first, second, _ = replay.sessions(3, seed=0)
        assert len(first.content) == 75
        assert first.content[:64] == second.content[:64]
        assert first.content[64:75] != second.content[64:75]
        assert (first.max_tokens, second.max_tokens) == (1, 2)

    def test_cut_prompts(self, mooncake):
        sessions = Replay(read_trace(mooncake), IDS, max_input=700).sessions(3, seed=0)
        assert [len(session.content) for session in sessions] == [700, 700, 600]

    def test_another_seed_and_strangers_are_other_content_of_the_same_shape(self, mooncake):
        replay = Replay(read_trace(mooncake), IDS)
        first, second, _ = replay.sessions(3, seed=0)
        for others in (replay.sessions(3, seed=1), replay.strangers(3, seed=0)):
            one, two, _ = others
            assert one.content[:16] != first.content[:16]
            assert one.content[:1024] == two.content[:1024]
        assert next(replay.strangers(1, seed=0)).at is None
        assert list(replay.sessions(2, seed=0)) == [first, second]

    def test_azure(self, tmp_path):
        path = tmp_path / "azure.csv"
        path.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
        )
        first, second = Replay(read_trace(path), IDS).sessions(5, seed=0)
        assert (len(first.content), first.max_tokens, first.at) == (374, 44, 0.0)
        assert (len(second.content), second.max_tokens) == (396, 109)
        assert second.at == pytest.approx(4.314579, abs=1e-5)
        assert first.content[:16] != second.content[:16]

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            (
                "t.jsonl",
                '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 0}',
                "line 2",
            ),
            ("t.jsonl", "hello", "line 1"),
            ("t.jsonl", "", "no request"),
            ("t.csv", "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,3", "line 2"),
        ],
    )
    def test_mistakes_name_the_line(self, tmp_path, name, text, words):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_trace(tmp_path / name)

    def test_what_is_a_trace(self):
        assert is_trace(Path("a.jsonl"), json.dumps(MOONCAKE[0]))
        assert is_trace(Path("a.csv"), "")
        assert not is_trace(Path("a.jsonl"), '{"prompt": "x"}')


class TestDatasets:
    def rows(self, tmp_path, *rows, chat=None):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return read_dataset(path, chat)

    def test_forms(self, tmp_path):
        said = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
        messages = [{"role": "user", "content": "hi"}]
        rows = self.rows(
            tmp_path,
            {"prompt": "once", "max_tokens": 9},
            {"prompt": [1, 2, 3]},
            {"messages": messages},
            {"conversations": said},
        )
        assert [row.content for row in rows] == ["once", [1, 2, 3], messages, messages]
        assert [row.max_tokens for row in rows] == [9, None, None, None]

    def test_begins_again_beyond_its_end_in_an_order_of_the_seed(self, tmp_path):
        rows = self.rows(tmp_path, *({"prompt": f"p{n}"} for n in range(20)))
        dataset = Dataset(rows, lengths("5"))
        contents = [session.content for session in dataset.sessions(40, seed=0)]
        assert contents[:20] == contents[20:]
        assert sorted(contents[:20]) == sorted(row.content for row in rows)
        assert contents != [session.content for session in dataset.sessions(40, seed=1)]

    def test_strangers_are_other_words(self, tmp_path):
        rows = self.rows(tmp_path, {"messages": [{"role": "user", "content": "x" * 500}]})
        (stranger,) = Dataset(rows, lengths("5")).strangers(1, seed=0)
        assert len(stranger.content[0]["content"].split()) == 100

    def test_prompts_as_chats(self, tmp_path):
        (row,) = self.rows(tmp_path, {"prompt": "hi"}, chat=True)
        assert row.content == [{"role": "user", "content": "hi"}]

    @pytest.mark.parametrize(
        ("row", "chat"),
        [
            ({"text": "x"}, None),
            ({"messages": []}, None),
            ({"messages": [{"role": "user"}]}, False),
            (7, None),
        ],
    )
    def test_mistakes_name_the_line(self, tmp_path, row, chat):
        with pytest.raises(ConfigError, match="line 2"):
            self.rows(tmp_path, {"prompt": "fine"}, row, chat=chat)
