"""Whether a request may start: an estimate of the most memory that all will need at once while it runs.

After LightLLM's "Past-Future" scheduler (Gong et al., ASPLOS 2025). With requests sorted by what they still
have to answer, longest first, the cache is fullest at the moment when one of them ends:

    peak = max over i >= n of  shared + (own_0 + ... + own_i) + remaining_i * (i + 1)

    n             the newcomer's place: what comes after its end it does not make any worse
    own_i         tokens in blocks that only request i uses
    remaining_i   tokens it is still expected to answer: what max_tokens leaves, or what QUANTILE of the
                  answers that were already that long went on to at most, whichever is less
    shared        tokens in blocks with a prefix that several use, or used: counted once, as if they stayed

All lengths are known to be wrong a little. Where the estimate was too low the newest row is preempted; where
it was too high, memory stays empty.
"""

import numpy as np
import numpy.typing as npt

from scheduler.block_pool import BlockPool
from scheduler.request import Request
from scheduler.rows import Rows

QUANTILE = 0.8  # of answers; the sum over many rows is surer than each
_PER_DOUBLING = 8  # buckets
_BUCKETS = 21 * _PER_DOUBLING  # up to two million tokens
_PRIOR = 1 / 16  # an answer's weight in each bucket up to _PRIOR_MOST tokens, before any was seen
_PRIOR_MOST = 1024
_FORGET = 1 - 1 / 2000  # of an answer's weight, with each that follows

Counts = npt.NDArray[np.int64]


class AnswerLengths:
    """How long answers are: a histogram by powers of two, in which old answers fade."""

    def __init__(self) -> None:
        self._ends = 2.0 ** (np.arange(_BUCKETS) / _PER_DOUBLING)  # tokens, the longest in each bucket
        self._weights = np.where(self._ends <= _PRIOR_MOST, _PRIOR, 0.0)
        self._scale = 1.0  # grows instead of all weights fading
        self._upto: npt.NDArray[np.float64] | None = None

    def observe(self, length: int) -> None:
        """An answer has ended with so many tokens."""
        self._scale /= _FORGET
        self._weights[min(_BUCKETS - 1, int(np.searchsorted(self._ends, length)))] += self._scale
        self._upto = None
        if self._scale > 1e9:
            self._weights /= self._scale
            self._scale = 1.0

    def remaining(self, answered: Counts, most: Counts) -> Counts:
        """Tokens still to come [n] of answers that have `answered` [n] now and can get `most` more [n]."""
        if self._upto is None:
            self._upto = np.cumsum(self._weights)
        upto = self._upto
        done = np.searchsorted(self._ends, answered, side="right")
        passed = np.where(done > 0, upto[done - 1], 0.0)
        at = np.searchsorted(upto, passed + QUANTILE * (upto[-1] - passed))
        # Longer than any that was seen: it may go on for as long as it has.
        total = np.where(passed < upto[-1], self._ends[np.minimum(at, _BUCKETS - 1)], 2.0 * answered)
        expected = np.maximum(1, np.ceil(total).astype(np.int64) - answered)
        least: Counts = np.minimum(expected, most)
        return least


def peak(own: Counts, remaining: Counts) -> int:
    """The most tokens that requests with `own` [n] tokens will have at once while the last of them runs."""
    order = np.argsort(-remaining, kind="stable")
    totals = np.cumsum(own[order]) + remaining[order] * np.arange(1, len(order) + 1)
    return int(totals[remaining[order] <= remaining[-1]].max())


class PeakMemory:
    """The estimate for the rows of one worker."""

    def __init__(self, rows: Rows, pool: BlockPool, answers: AnswerLengths) -> None:
        self._rows = rows
        self._pool = pool
        self.answers = answers

    def fits(self, request: Request, cached: list[int], running: list[int]) -> bool:
        """Whether `request`, which finds `cached` blocks, can start beside the rows that are `running`.

        Rows of lower priority are left out: they give way when memory is short.
        """
        rows, size = self._rows, self._rows.block_size
        every = np.array(running, np.int64)
        own = (rows.num_blocks[every] - rows.shared[every]) * size
        shared = (self._pool.held - self._pool.fenced + self._pool.idle_among(cached)) * size - int(own.sum())
        beside = rows.priority[every] >= request.priority
        every, own = every[beside], own[beside]
        if not len(every):
            return True
        length = len(request.tokens)
        known, limit = rows.known[every], rows.limit[every]
        answered = np.append(known - rows.prompt[every], length - request.prompt_len)
        most = np.append(limit - known, request.limit - length)
        fresh = -(-length // size) - len(cached)
        own = np.append(own, fresh * size)
        remaining = self.answers.remaining(answered, most)
        remaining += -remaining % size  # memory comes in blocks
        needed = shared + peak(own, remaining)
        return needed <= self._pool.num_blocks * size
