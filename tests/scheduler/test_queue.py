from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

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


def test_higher_priorities_go_first_and_tenants_take_turns():
    tenants = Tenants()
    queue = WaitingQueue(tenants, lambda: 0.0)
    a, b = tenants.arriving("a", 1.0), tenants.arriving("b", 1.0)
    low = request(0, tenant=a, priority=-1)
    mine, next_mine, other, high = (
        request(1, tenant=a),
        request(2, tenant=a),
        request(3, tenant=b),
        request(4, tenant=b, priority=5),
    )
    for each in (low, mine, next_mine, other, high):
        queue.push(each)
    assert queue.pop() is high
    assert queue.pop() is mine
    a.charge(10)
    assert queue.drain() == [other, next_mine, low]


def test_work_before_a_request_is_that_of_its_equals_in_turn_and_of_all_above():
    tenants = Tenants()
    queue = WaitingQueue(tenants)
    heavy, light = tenants.arriving("heavy", 1.0), tenants.arriving("light", 1.0)
    queue.push(request(0, 1000, heavy))
    queue.push(request(1, 10, light))
    queue.push(request(2, 7, light, priority=1))
    assert queue.work_before(request(3, tenant=heavy)) == 1017
    assert queue.work_before(request(4, tenant=light)) == 2 * 10 + 7
    assert queue.work_before(request(5, tenant=heavy, priority=1)) == 0
    assert queue.work_before(request(6, tenant=light, priority=2)) == 0


def test_a_low_priority_has_its_turn_in_the_end():
    now = 0.0
    tenants = Tenants()
    queue = WaitingQueue(tenants, lambda: now)
    tenant = tenants.arriving("low", 1.0)
    low = [request(n, tenant=tenant, priority=-1) for n in range(3)]
    for each in low:
        queue.push(each)
    queue.cancel(low[0])
    served = []
    for second in range(15):
        now = float(second)
        queue.push(request(100 + second, tenant=tenants.arriving("high", 1.0), priority=1))
        served.append(queue.pop())
        served[-1].tenant.charge(5)
    assert served.index(low[1]) < served.index(low[2])  # one a second, and before those that came later
    assert low[2].priority == 1


requests = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(-2, 2), st.integers(0, 50), st.booleans()), max_size=60
)


@given(requests)
def test_everybody_leaves_once_by_priority_and_in_order_for_each_tenant(asked):
    tenants = Tenants()
    queue = WaitingQueue(tenants, lambda: 0.0)
    all_of_them, gone = [], []
    for n, (name, priority, charge, leave) in enumerate(asked):
        tenant = tenants.arriving(name, 1.0)
        each = request(n, n, tenant, priority)
        all_of_them.append(each)
        queue.push(each)
        tenant.charge(charge)
        if leave and n % 3 == 0:
            queue.cancel(each)
            gone.append(each)
        elif leave:
            gone.append(queue.pop())
            waiting = [other for other in all_of_them if other not in gone]
            assert all(other.priority <= gone[-1].priority for other in waiting)
            equals = [other for other in waiting if other.priority == gone[-1].priority]
            assert all(other.tenant.counter >= gone[-1].tenant.counter for other in equals)
        assert queue.work == sum(other.work for other in all_of_them if other not in gone)
    rest = queue.drain()
    assert sorted(each.arrival for each in rest + gone) == list(range(len(asked)))
    for name in "abcd":
        for priority in range(-2, 3):
            own = [r.arrival for r in rest if (r.tenant.name, r.priority) == (name, priority)]
            assert own == sorted(own)
    assert (len(queue), queue.work) == (0, 0)
    assert all(tenant.waiting == 0 for tenant in tenants._known.values())
