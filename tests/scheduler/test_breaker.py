from scheduler.breaker import LONGEST, MOST, PROBE, SHORTEST, WINDOW, Breaker


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def opened(clock):
    breaker = Breaker(clock)
    for _ in range(MOST - 1):
        assert breaker.lost() == 0
    assert breaker.lost() == SHORTEST
    assert breaker.is_probing
    return breaker


def prove(breaker, steps=PROBE):
    for _ in range(steps):
        breaker.answered()


def test_accidents_apart_open_nothing():
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(5 * MOST):
        assert breaker.lost() == 0
        clock.now += WINDOW / (MOST - 1) + 0.1
    assert not breaker.is_probing
    assert breaker.opened == 0


def test_each_loss_while_it_probes_doubles_the_pause():
    breaker = opened(Clock())
    pauses = [breaker.lost() for _ in range(10)]
    assert pauses[:3] == [2 * SHORTEST, 4 * SHORTEST, 8 * SHORTEST]
    assert pauses[-1] == LONGEST
    prove(breaker, PROBE - 1)
    assert breaker.lost() == LONGEST


def test_steps_that_are_answered_close_it():
    breaker = opened(Clock())
    prove(breaker)
    assert not breaker.is_probing
    assert [breaker.lost() for _ in range(MOST)] == [0] * (MOST - 1) + [SHORTEST]
    assert breaker.opened == 2
