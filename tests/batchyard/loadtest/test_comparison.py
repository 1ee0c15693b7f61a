import numpy as np
import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.comparison import compare, main, pairs, sample, show
from batchyard.loadtest.results import Point
from tests.batchyard.loadtest.made import lost, outcome, result, run


def noisy(seed, slower=1.0, count=200, **changes):
    """Requests one after another, whose latencies vary by a fifth."""
    rng = np.random.default_rng(seed)
    outcomes, at = [], 0.0
    for number in range(count):
        ttft, *gaps = slower * np.array([0.1, *(0.01,) * 10]) * rng.normal(1, 0.2, 11).clip(0.2)
        outcomes.append(outcome(number, sent=at, ttft=ttft, gaps=gaps))
        at = outcomes[-1].end
    return run(outcomes, **changes)


def test_percentiles_of_weights_are_those_of_repeated_values():
    rng = np.random.default_rng(0)
    values = [rng.random(rng.integers(1, 9)) for _ in range(50)]
    weights = rng.integers(0, 4, 50)
    repeated = np.concatenate([np.repeat(own, n) for own, n in zip(values, weights, strict=True)])
    for percent in (1, 50, 90, 99):
        expected = np.percentile(repeated, percent, method="inverted_cdf")
        assert sample(values).percentile(weights, percent) == expected


def test_what_is_slower_is_worse():
    ratios = {ratio.name: ratio for ratio in compare(noisy(0), noisy(1, slower=1.5))}
    for name in ("TTFT p50, ms", "ITL p50, ms", "ITL p99, ms", "TPOT p50, ms", "E2E p50, ms"):
        assert ratios[name].low < 1.5 < ratios[name].high
        assert ratios[name].verdict == "worse"
    throughput = ratios["output tokens/s"]
    assert throughput.ratio == pytest.approx(1 / 1.5, rel=0.05)
    assert throughput.verdict == "worse"


def test_intervals_hold_what_is_equal_about_as_often_as_they_say():
    held = [
        ratio.verdict == ""
        for seed in range(12)
        for ratio in compare(noisy(seed), noisy(100 + seed, count=150))
    ]
    assert sum(held) / len(held) > 0.85


def test_faster_is_better():
    assert {r.verdict for r in compare(noisy(0), noisy(1, slower=0.5)) if "p50" in r.name} == {"better"}


def test_answers_of_one_token_have_no_gaps_to_compare():
    alone = run([outcome(n, sent=n, gaps=()) for n in range(20)])
    assert {ratio.name.split()[0] for ratio in compare(alone, alone)} == {"output", "TTFT", "E2E"}


def test_pairs():
    one, two, four = (run([outcome()], value) for value in (1, 2, 4))
    assert [point for point, _, _ in pairs([one, two], [four, two])] == [Point("concurrency", 2)]
    assert pairs([one], [four]) == [(one.point, one, four)]
    assert pairs([one, run([lost()], 2)], [two, four]) == []


def test_what_makes_a_comparison_doubtful_is_said():
    lines = "\n".join(show(Point("rate", 3), run([outcome(0), lost(1)]), run([outcome()], 2), ("x", "y")))
    assert "1 requests failed" in lines
    assert "so few requests" in lines
    assert "B at 2 at once" in lines


class TestCommand:
    def files(self, tmp_path, *results):
        paths = [tmp_path / f"{n}.json" for n in range(len(results))]
        for path, one in zip(paths, results, strict=True):
            one.save(path)
        return [str(path) for path in paths]

    def test_table(self, tmp_path, capsys):
        results = result([noisy(0)], "theirs", input="5"), result([noisy(1, 1.5)], "ours", input="6")
        main(self.files(tmp_path, *results))
        shown = capsys.readouterr().out
        assert "they differ in --input" in shown
        assert "A theirs, 200 answered; B ours, 200 answered" in shown
        assert "worse" in shown

    def test_nothing_in_common(self, tmp_path):
        several = result([noisy(0), noisy(0, value=2.0)]), result([noisy(0, value=4.0), noisy(0, value=8.0)])
        with pytest.raises(ConfigError, match="no point in common"):
            main(self.files(tmp_path, *several))

    def test_not_a_result(self, tmp_path):
        (tmp_path / "x.json").write_text("[1]")
        with pytest.raises(ConfigError, match="not a result"):
            main([str(tmp_path / "x.json"), str(tmp_path / "x.json")])
        with pytest.raises(ConfigError, match="No such file"):
            main([str(tmp_path / "y.json"), str(tmp_path / "x.json")])
