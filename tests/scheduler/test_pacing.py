import pytest

from scheduler.pacing import MOST_STEPS, Pacing


def run(pacing, busy_us, hop_us=0, prompt_tokens=0, count=200):
    """As many steps, each sent when the one before was answered; the time when the last was."""
    now = 0.0
    for _ in range(count):
        pacing.sent(prompt_tokens, now)
        now += (busy_us + hop_us) / 1e6
        pacing.answered(busy_us, hop_us, now)
    return now


def settled(least, busy_us, hop_us=0):
    pacing = Pacing(least)
    run(pacing, busy_us, hop_us)
    return pacing.depth


@pytest.mark.parametrize(
    ("busy_us", "depth"),
    [(0, MOST_STEPS), (300, MOST_STEPS), (1_000, 4), (1_600, 3), (5_000, 2), (50_000, 2)],
)
def test_short_steps_need_more_of_them(busy_us, depth):
    assert settled(2, busy_us) == depth


@pytest.mark.parametrize(
    ("busy_us", "hop_us", "depth"),
    [
        (4_700, 500, 2),
        (4_700, 2_500, 3),
        (1_230, 500, 4),
        (1_230, 2_500, 6),
        (50_000, 4_000, 2),
        (1_000, -50, 4),
    ],
)
def test_a_longer_way_needs_more_of_them(busy_us, hop_us, depth):
    assert settled(2, busy_us, hop_us) == depth


def test_the_least_is_kept_and_synchronous_stays_synchronous():
    assert settled(5, 50_000) == 5
    assert settled(1, 100, 5_000) == 1


def test_it_begins_with_two():
    assert Pacing(2).depth == 2


def test_with_nothing_in_flight_nothing_is_held_back():
    pacing = Pacing(2)
    assert pacing.hold_back(run(pacing, 50_000)) == 0


def test_the_next_step_waits_until_the_one_before_it_is_nearly_over():
    pacing = Pacing(2)
    now = run(pacing, 10_000, hop_us=500)
    pacing.sent(0, now)
    # Of the 10 ms, a tenth is caution; 2 ms and the hop are to be left.
    assert pacing.hold_back(now) == pytest.approx(0.0065, abs=1e-4)
    assert pacing.hold_back(now + 0.0064) == 0


def test_what_a_prompt_takes_is_counted_in():
    pacing = Pacing(2)
    run(pacing, 5_000)
    now = run(pacing, 30_000, prompt_tokens=1_000)
    pacing.sent(400, now)
    assert pacing.hold_back(now) == pytest.approx(0.9 * 0.015 - 0.002, abs=1e-4)


def test_short_steps_are_not_held_back():
    pacing = Pacing(2)
    now = run(pacing, 2_500)
    pacing.sent(0, now)
    assert pacing.hold_back(now) == 0


def test_a_step_of_fewer_rows_shortens_what_is_expected_at_once():
    pacing = Pacing(2)
    run(pacing, 20_000)
    now = run(pacing, 5_000, count=1)
    pacing.sent(0, now)
    assert pacing.hold_back(now) == pytest.approx(0.9 * 0.005 - 0.002, abs=1e-4)


def test_an_answer_corrects_what_was_expected():
    pacing = Pacing(3)
    now = run(pacing, 10_000)
    pacing.sent(0, now)
    pacing.sent(0, now)
    pacing.answered(40_000, 0, now + 0.04)
    assert pacing.hold_back(now + 0.04) == pytest.approx(0.9 * 0.010 - 0.002, abs=1e-3)
