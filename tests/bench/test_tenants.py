import pytest

from bench.simulation.fleet import OPTIONS, serve
from bench.simulation.routers import RoundRobin
from bench.simulation.virtual_time import run
from bench.simulation.worker import SimulatedTransport, SimulatedWorker
from bench.tenants import Counted, Shape, ideal, questions
from scheduler.placement import LeastCost

SHAPE = Shape(workers=4, blocks=256, requests=400, concurrency=16, system=256, question=8, answer=8, rounds=1)


def test_tenants_share_their_system_prompt_and_nothing_else():
    asked = questions(SHAPE, seed=0)
    assert {question.length for question in asked} == {264}
    assert len({question.prompt[:256].tobytes() for question in asked}) == 32
    assert len({question.prompt[256:].tobytes() for question in asked}) == 400


def test_ideal_is_every_system_prompt_once_if_all_fit():
    asked = questions(SHAPE, seed=0)
    assert ideal(asked, blocks=1000) == pytest.approx((400 - 32) * 256 / (400 * 264))
    assert ideal(asked, blocks=100) < 0.3


@pytest.mark.parametrize(("placement", "apart"), [(LeastCost, 0.05), (RoundRobin, 0.6)])
def test_counted_is_what_the_workers_compute(placement, apart):
    asked = questions(SHAPE, seed=0)
    workers = [SimulatedWorker(f"worker-{n}", SHAPE.blocks) for n in range(SHAPE.workers)]
    counted = Counted(placement())
    transports = [SimulatedTransport(worker) for worker in workers]
    outcome = run(serve(asked, transports, counted, OPTIONS, SHAPE.concurrency))
    assert ideal(asked, 1024) - apart < outcome.hit_rate < ideal(asked, 1024) + 0.001
    for worker in workers:
        answers = SHAPE.answer * counted.given[worker.description.worker_id]
        prompts = counted.computed[worker.description.worker_id] - answers
        assert worker.computed_tokens == pytest.approx(prompts, rel=0.05)
