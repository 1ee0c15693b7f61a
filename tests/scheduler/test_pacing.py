import pytest

from scheduler.pacing import MOST_STEPS, Pacing


def settled(least, busy_us):
    pacing = Pacing(least)
    for _ in range(200):
        pacing.observe(busy_us)
    return pacing.depth


@pytest.mark.parametrize(
    ("busy_us", "depth"),
    [(0, MOST_STEPS), (300, MOST_STEPS), (1_000, 4), (1_600, 3), (5_000, 2), (50_000, 2)],
)
def test_short_steps_need_more_of_them(busy_us, depth):
    assert settled(2, busy_us) == depth


def test_the_least_is_kept_and_synchronous_stays_synchronous():
    assert settled(5, 50_000) == 5
    assert settled(1, 100) == 1


def test_it_begins_with_two():
    assert Pacing(2).depth == 2
