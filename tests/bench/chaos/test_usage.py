"""What counts as flat."""

import pytest

from bench.chaos.usage import Usage, growth

BEFORE = Usage(memory_mib=300, descriptors=20, threads=10, tasks=12)


@pytest.mark.parametrize(
    ("after", "flat"),
    [
        (BEFORE, True),
        (Usage(330, 22, 12, 15), True),
        (Usage(360, 20, 10, 12), False),
        (Usage(300, 30, 10, 12), False),
        (Usage(300, 20, 20, 12), False),
        (Usage(300, 20, 10, 40), False),
        (Usage(100, 5, 5, 5), True),
    ],
)
def test_growth_is_more_than_what_comes_and_goes(after, flat):
    found = list(growth({"scheduler": BEFORE}, {"scheduler": after}))
    assert (found == []) == flat
    assert all(words.startswith("scheduler: ") for words in found)


def test_a_standby_that_took_over_may_hold_what_the_one_before_it_held():
    standby = Usage(memory_mib=120, descriptors=9, threads=6, tasks=5)
    before = {"scheduler-0": BEFORE, "scheduler-1": standby}
    assert list(growth(before, {"scheduler-0": standby, "scheduler-1": BEFORE})) == []
    assert list(growth(before, {"scheduler-1": Usage(300, 20, 10, 40)})) != []
