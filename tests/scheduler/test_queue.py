from types import SimpleNamespace

from scheduler.fairness import Tenant, Tenants
from scheduler.queue import WaitingQueue

TENANT = Tenant()


def request(arrival, work=3, tenant=TENANT, priority=0):
    return SimpleNamespace(
        arrival=arrival, work=work, cancelled=False, tenant=tenant, priority=priority, arrived=0.0
    )


def test_a_request_that_comes_back_takes_its_old_place():
    queue = WaitingQueue(Tenants())
    first, second, third = (request(n) for n in range(3))
    queue.push(second)
    queue.push(third)
    queue.push(first)
    assert queue.peek() is first
    assert queue.drain() == [first, second, third]
    assert queue.peek() is None


def test_cancelled_requests_do_not_count():
    queue = WaitingQueue(Tenants())
    first, second = request(0, 5), request(1, 7)
    queue.push(first)
    queue.push(second)
    queue.cancel(first)
    assert (len(queue), queue.work) == (1, 7)
    assert queue.peek() is second
    assert queue.pop() is second
    assert (len(queue), queue.work) == (0, 0)
