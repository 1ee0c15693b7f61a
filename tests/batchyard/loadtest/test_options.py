import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.options import parse
from batchyard.loadtest.results import Point
from batchyard.loadtest.synthetic import Conversations, Synthetic
from batchyard.loadtest.traces import Replay
from batchyard.loadtest.tuning import parse as parse_tune


def options(words="", **environ):
    return parse(words.split(), environ)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\n")
    return path


def test_defaults():
    given = options()
    assert given.points == (Point("concurrency", 16),)
    assert isinstance(given.workload, Synthetic)
    assert given.count(given.points[0]) == 100
    assert given.count(Point("concurrency", 64)) == 256
    assert given.pinned


def test_loads(trace):
    assert options("--rates 1,2.5").points == (Point("rate", 1), Point("rate", 2.5))
    assert options("--concurrency 1,2").points == (Point("concurrency", 1), Point("concurrency", 2))
    assert options("--sweep auto").points == ()
    replay = options(f"--trace {trace} --speed 3")
    assert (replay.points, replay.count(replay.points[0])) == ((Point("trace", 3),), 1)
    assert isinstance(replay.workload, Replay)
    assert options(f"--trace {trace} --concurrency 2").points == (Point("concurrency", 2),)
    assert isinstance(options("--turns 3 --think 1").workload, Conversations)


def test_how_many():
    assert options("--rate 4 --duration 10").count(Point("rate", 4)) == 40
    assert options("--duration 10").count(Point("concurrency", 4)) is None
    assert options("--duration 10 --requests 7").count(Point("concurrency", 4)) == 7


def test_keys_come_from_the_environment_and_are_not_recorded():
    assert options(OPENAI_API_KEY="a", BATCHYARD_API_KEY="b").target.api_key == "b"
    given = options("--api-key secret", OPENAI_API_KEY="a")
    assert given.target.api_key == "secret"
    assert "secret" not in str(given.asked)


def test_the_body():
    given = parse(["--temperature", "0.7", "--body", '{"top_p": 0.9, "temperature": 1}'], {})
    assert given.body == {"temperature": 1, "top_p": 0.9}


def test_save_takes_any_of_the_names():
    assert str(options("--save a/b.json").save) == "a/b"
    assert str(options("--save a/v0.2").save) == "a/v0.2"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--concurrency 0", "--concurrency 0"),
        ("--concurrency 1.5", "whole number"),
        ("--rate x", "--rate x"),
        ("--rate 1 --concurrency 2", "exclude each other"),
        ("--rate 1 --sweep auto", "exclude each other"),
        ("--burstiness 2", "--rate"),
        ("--think 2", "for conversations only"),
        ("--speed 2", "for traces only"),
        ("--turns 2 --prefix 10", "for synthetic prompts only"),
        ("--prefixes 2", "need --prefix"),
        ("--prefix 5 --prefix-share 1.5", "between 0 and 1"),
        ("--turns 2 --endpoint completions", "chats"),
        ("--turns 2 --dataset x", "exclude each other"),
        ("--dataset /no/such/file", "No such file"),
        ("--trace /no/such/file", "No such file"),
        ("--dataset x --input 5", "--input is not for datasets"),
        ("--endpoint chat --prompts ids", "a chat is text"),
        ("--prompts text --token-ids 1:2", "text here"),
        ("--requests 0", "--requests 0"),
        ("--retries -1", "--retries -1"),
        ("--body [", "JSON object"),
        ("--goodput ttft", "--goodput ttft"),
        ("--inputs 5", "unrecognized"),
    ],
)
def test_mistakes_are_named(words, problem):
    with pytest.raises(ConfigError, match=problem):
        options(words)


def test_a_trace_given_as_a_dataset(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [0]}')
    with pytest.raises(ConfigError, match="give it as --trace"):
        options(f"--dataset {path}")


@pytest.mark.usefixtures("no_settings")
class TestTune:
    def test_plan(self):
        plan = parse_tune(
            [
                "--model",
                "demo",
                "--max-num-seqs",
                "8,4",
                "--minutes",
                "2",
                "--",
                "--workers",
                "2",
                "--seed",
                "5",
            ]
        )
        assert plan.flags == ("--model", "demo", "--workers", "2", "--seed", "5")
        assert (plan.settings.workers, plan.seconds, plan.space.seqs) == (2, 120, [4, 8])
        assert plan.options.points == (Point("concurrency", 64),)

    def test_another_load_is_measured_anew(self):
        prints = [
            parse_tune(words.split()).fingerprint
            for words in ("", "--minutes 9", "--input 9", "-- --workers 2")
        ]
        assert prints[0] == prints[1]
        assert len(set(prints)) == 3

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            ("--rates 1,2", "one load"),
            ("--sweep auto", "one load"),
            ("--save x", "--save"),
            ("--minutes 0", "--minutes"),
            ("--max-num-seqs 1.5", "whole numbers"),
            ("--max-num-seqs 64 --max-num-batched-tokens 32", "at least"),
            ("-- --max-num-seqs 5", "tune sets it itself"),
            ("-- --port=5", "tune sets it itself"),
            ("-- --block-sise 5", "--block-size"),
        ],
    )
    def test_mistakes_are_named(self, words, problem):
        with pytest.raises(ConfigError, match=problem):
            parse_tune(words.split())
