"""Which graphs are worth replaying."""

import pytest
import torch

from gpu_worker.capturing import capture_graphs, outrun


def test_a_graph_that_a_larger_one_outruns_is_of_no_use():
    assert outrun(1.7, 1.0)
    assert not outrun(0.9, 1.0)


def test_what_two_runs_differ_by_does_not_count():
    assert not outrun(1.05, 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_only_graphs_that_pay_are_kept():
    x = torch.randn(4096, 4096, device="cuda")
    prepared = []

    def forward(size):
        for _ in range(30 if size == 2 else size):
            x @ x

    graphs = capture_graphs(
        [8, 4, 2, 1], prepared.append, forward, lambda: None, torch.cuda.graph_pool_handle()
    )
    assert list(graphs) == [8, 4, 1]
    assert prepared == [8, 4, 2, 1]
