import json

import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.search import Setting, Space, Trial, climb, grid
from batchyard.loadtest.statistics import Objectives
from batchyard.loadtest.trial_table import describe, show
from batchyard.loadtest.tuner import Notebook
from batchyard.loadtest.usage import Usage

SPACE = Space([64, 256, 1024, 4096], [16, 64, 256])


class Hill:
    """Settings whose throughput falls with the distance from the top."""

    def __init__(self, top, enough=99):
        self.top, self.enough, self.tried = top, enough, {}

    async def attempt(self, setting):
        if setting in self.tried:
            return self.tried[setting]
        if len(self.tried) == self.enough:
            return None
        far = abs(SPACE.tokens.index(setting.max_num_batched_tokens) - SPACE.tokens.index(self.top[0]))
        far += abs(SPACE.seqs.index(setting.max_num_seqs) - SPACE.seqs.index(self.top[1]))
        self.tried[setting] = Trial(setting, output_tok_per_s=1000 / (1 + far))
        return self.tried[setting]


def test_a_running_request_needs_a_token_in_a_step():
    assert Setting(64, 256) not in list(SPACE.everything())
    assert len(list(SPACE.everything())) == 11
    assert set(SPACE.neighbours(Setting(64, 64))) == {Setting(64, 16), Setting(256, 64)}


@pytest.mark.parametrize("top", [(4096, 16), (1024, 64), (256, 256)])
async def test_climbing_finds_the_top_without_trying_everything(top):
    hill = Hill(top)
    await climb(SPACE, Setting(1024, 256), hill.attempt)
    assert Setting(*top) in hill.tried
    assert len(hill.tried) < 11


async def test_a_grid_tries_everything():
    hill = Hill((64, 16))
    await grid(SPACE, hill.attempt)
    assert set(hill.tried) == set(SPACE.everything())


@pytest.mark.parametrize("search", ["climb", "grid"])
async def test_both_end_with_the_time(search):
    hill = Hill((4096, 16), enough=2)
    if search == "climb":
        await climb(SPACE, Setting(64, 64), hill.attempt)
    else:
        await grid(SPACE, hill.attempt)
    assert len(hill.tried) == 2


HERE = Setting(64, 16)


@pytest.mark.parametrize(
    ("mine", "theirs", "beats"),
    [
        ({"output_tok_per_s": 103.0}, {"output_tok_per_s": 100.0}, True),
        ({"output_tok_per_s": 101.0}, {"output_tok_per_s": 100.0}, False),  # noise
        ({"output_tok_per_s": 10.0}, {"output_tok_per_s": 100.0, "keeps": False}, True),
        ({"output_tok_per_s": 100.0, "keeps": False}, {"output_tok_per_s": 10.0}, False),
        ({"keeps": False, "good": 0.8}, {"keeps": False, "good": 0.4, "output_tok_per_s": 9.0}, True),
        ({"output_tok_per_s": 1.0}, {"error": "did not start"}, True),
    ],
)
def test_what_is_better(mine, theirs, beats):
    assert Trial(HERE, **mine).beats(Trial(HERE, **theirs)) is beats


class TestNotebook:
    def test_what_was_measured_is_known_again(self, tmp_path):
        trial = Trial(HERE, 1.0, 2.0, 3.0, 4.0, 0.5, usage=Usage(rss_gib=1.5))
        Notebook(tmp_path / "state", "load").add(trial)
        Notebook(tmp_path / "state", "other").add(Trial(Setting(64, 64)))
        assert Notebook(tmp_path / "state", "load").trials == {HERE: trial}

    @pytest.mark.parametrize("text", ["[]", "x", json.dumps({"load": "load", "trial": {}})])
    def test_another_file_is_left_alone(self, tmp_path, text):
        (tmp_path / "state").write_text(text)
        with pytest.raises(ConfigError, match="not a state"):
            Notebook(tmp_path / "state", "load")


class TestTable:
    def test_the_best_is_named(self):
        slow = Trial(Setting(256, 64), 1.0, 50.0, 30.0, 3.0, usage=Usage(1.0, 1.2, 0.8))
        fast = Trial(Setting(256, 16), 2.0, 100.0, 20.0, 2.0, lost=3)
        bad = Trial(Setting(4096, 16), error="out of memory", keeps=False)
        *rows, best = show([fast, bad, slow], Objectives())
        assert best == "Best: --max-num-batched-tokens 256 --max-num-seqs 16"
        assert rows[1].endswith("did not start")
        assert rows[2].split()[6:9] == ["1.00", "1.20", "80%"]
        assert rows[3].endswith("3 lost")
        assert describe(bad, Objectives()).endswith("out of memory")

    def test_none_is_good_enough(self):
        trial = Trial(HERE, 1.0, 2.0, good=0.3, keeps=False)
        *_, last = show([trial], Objectives(ttft=5))
        assert last == "No setting served this load within ttft:5."
        assert "30.0% within ttft:5" in describe(trial, Objectives(ttft=5))
