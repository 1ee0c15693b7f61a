"""What rows count in advance: what is charged is what was computed, and what the next steps will take."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.fairness import LOOKAHEAD
from tests.scheduler.hand_stepped import Bench


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 150)), min_size=1, max_size=6))
def test_advances_are_what_rows_take_in_the_next_steps(shapes):
    bench = Bench(max_rows=4, budget=16, num_blocks=400, max_model_len=256)
    requests = [bench.add(list(range(p)), n, tenant=f"t{i % 2}") for i, (p, n) in enumerate(shapes)]
    rows = bench.batcher.rows
    while bench.session.requests:
        while bench.send():
            pass
        bench.answer()
        expected = {request.tenant: 0 for request in requests}
        for row in bench.batcher.running:
            left = int(rows.limit[row] - rows.known[row]) - (not rows.decoding[row])
            expected[rows.requests[row].tenant] += min(LOOKAHEAD, left)
        assert {tenant: tenant.advance for tenant in expected} == expected
        assert all(
            np.isclose(tenant.counter - tenant.served, tenant.advance + tenant.credit) for tenant in expected
        )
