import pytest

from scheduler.pacing import MOST_STEPS, Pacing


def settled(least, busy_us, hop_us=0):
    pacing = Pacing(least)
    for _ in range(200):
        pacing.observe(busy_us, hop_us)
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
