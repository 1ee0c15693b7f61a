"""Capturing CUDA graphs for a list of sizes, the largest first, of which only those are kept that pay.

cuBLAS picks its kernel by the number of rows, and not always well: on an H200 a product of 448 rows can take
1.7 times as long as one of 512. So each graph is timed, and one that a larger one outruns is dropped: its
steps are padded to the larger size.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE


_NOTICEABLE = 1.1  # times as long: bad kernels cost more than this, and what replays differ by is less
_REPLAYS = 3

Size = TypeVar("Size", bound=Hashable)


def capture_graphs(
    sizes: Sequence[Size],
    prepare: Callable[[Size], None],
    forward: Callable[[Size], None],
    stop: Callable[[], None],
    pool: "_POOL_HANDLE",
) -> dict[Size, torch.cuda.CUDAGraph]:
    """Graphs of `forward` for `sizes`, given largest first; of these, the ones worth replaying.

    prepare: fills what `forward` reads, which stays where it is. stop: called before each, and may raise.
    pool: of their memory, a `torch.cuda.graph_pool_handle`.
    """
    graphs: dict[Size, torch.cuda.CUDAGraph] = {}
    fastest = float("inf")  # seconds, of the larger ones
    for size in sizes:
        stop()
        prepare(size)
        forward(size)  # what allocates or compiles on first use does it here
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            forward(size)
        taken = min(_replay_seconds(graph) for _ in range(_REPLAYS))
        if not outrun(taken, fastest):
            graphs[size] = graph
        fastest = min(fastest, taken)
    return graphs


def outrun(taken: float, larger: float) -> bool:
    """Whether a graph that took so long is of no use beside a larger one; the times are of one unit."""
    return taken > larger * _NOTICEABLE


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize()
    return time.perf_counter() - start
