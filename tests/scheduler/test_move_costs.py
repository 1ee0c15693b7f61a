from scheduler.move_costs import ROUND_TRIP_US, MoveCosts


def test_loading_pays_until_something_else_is_known():
    costs = MoveCosts(block_size=16, budget=8192)
    assert costs.loading_pays(1)
    costs.observe_loads(10, 1_000_000_000)
    assert costs.loading_pays(1)


def test_an_8b_model_on_pcie():
    costs = MoveCosts(block_size=16, budget=8192)
    costs.observe_step(8192, 8192 * 25)  # 0.4 ms a block
    costs.observe_loads(100, 4_000)  # 40 µs a block
    worth = [n for n in range(100) if costs.loading_pays(n)]
    assert worth == list(range(ROUND_TRIP_US // 360 + 1, 100))


def test_steps_that_are_nearly_empty_say_nothing_of_prefill():
    costs = MoveCosts(block_size=16, budget=100)
    costs.observe_loads(1, 100_000)
    costs.observe_step(49, 50_000)
    costs.observe_step(100, 0)
    assert costs.loading_pays(1)
    costs.observe_step(50, 50)
    assert not costs.loading_pays(1000)


def test_rates_follow_what_is_observed():
    costs = MoveCosts(block_size=16, budget=100)
    costs.observe_step(100, 100)
    costs.observe_loads(1, 1_000)
    assert not costs.loading_pays(1000)
    for _ in range(100):
        costs.observe_loads(1, 1)
    assert costs.loading_pays(1000)


def test_what_a_load_is_worth_in_tokens():
    costs = MoveCosts(block_size=16, budget=100)
    assert costs.tokens_worth(10) == 16  # nothing is known yet: a tenth
    costs.observe_step(100, 1000)
    costs.observe_loads(10, 400)
    assert costs.tokens_worth(10) == 40
