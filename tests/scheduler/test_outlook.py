"""What a request would find, by its bound and exactly."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.outlook import Outlook
from scheduler.placement import LeastCost, cost
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.helpers import Client
from tests.scheduler.simulated_worker import SimulatedWorker
from tests.scheduler.test_core import evicted_to_host, running

PROMPT = [5] * 40


def outlook_of(bench):
    return Outlook(bench.batcher, bench.waiting, caching=True)


def asked(bench, prompt):
    """A request that is not in the queue."""
    request = bench.add(prompt, 1)
    assert bench.waiting.pop() is request
    return request


def test_what_is_on_the_host_is_loaded_at_a_tenth_of_its_tokens():
    bench = Bench(num_blocks=24, num_host_blocks=100, budget=40)
    for n in range(6):
        bench.add([n] * 40, 1)
        bench.run()
    request = asked(bench, [0] * 40)
    load = outlook_of(bench).exact(request)
    assert (load.uncached, load.loaded) == (4, 36)
    bench.batcher.tiers.costs.observe_step(40, 4000)
    assert load.loading == 3.6
    bound = outlook_of(bench).bound(request, 40)
    assert (bound.uncached, bound.loaded) == (4, 0)


def test_a_promise_counts_until_it_is_composed_or_forgotten():
    bench = Bench(budget=8)
    outlook = outlook_of(bench)
    second, first = asked(bench, PROMPT), bench.add(PROMPT, 2)
    outlook.expect(first, outlook.exact(first))
    assert outlook.exact(second).uncached == outlook.bound(second, 40).uncached == 4
    bench.send()
    outlook.composed()
    assert outlook.exact(second).uncached == 4
    outlook.forget(first)
    assert outlook.exact(second).uncached == 32


async def test_a_request_goes_where_the_host_has_its_beginning():
    shape = {"num_blocks": 24, "num_host_blocks": 60}
    async with running(SimulatedWorker(**shape)) as (warm, _):
        await evicted_to_host(warm)
        async with running(SimulatedWorker(**shape)) as (cold, _):
            client = Client(cold)
            client.submit(1, [0] * 40, 1)  # composed when the event loop runs: until then it waits
            request = cold.waiting.pop()
            request.hash_blocks(request.tokens, 4)
            lane, load = LeastCost().choose(request, [cold.lanes[0], warm.lanes[0]])
            assert lane is warm.lanes[0]
            assert (load.uncached, load.loaded) == (4, 36)


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@settings(max_examples=100)
@given(st.lists(prompts, min_size=1, max_size=12), prompts, st.integers(0, 40), st.sampled_from([0, 6, 60]))
def test_the_bound_is_never_costlier(history, prompt, guess, num_host_blocks):
    bench = Bench(num_blocks=12, num_host_blocks=num_host_blocks, budget=40)
    for earlier in history:
        bench.add(earlier, 2)
        bench.run()
    request = asked(bench, prompt)
    outlook = outlook_of(bench)
    assert cost(outlook.bound(request, min(guess, len(prompt)))) <= cost(outlook.exact(request))
