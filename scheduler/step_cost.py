"""What a step costs a worker, learned from what steps took: a line through many seconds of work.

    busy = steps * each + answer tokens * answer + prompt tokens * prompt      seconds of the device

Least squares over all workers' seconds, with weights that fade, and nothing negative. Where the number of
rows hardly changes, `each` and `answer` cannot be told apart; then all of it is taken for `each`, which it
nearly is where few rows decode: reading the weights.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_KEEP = math.exp(-1 / 300)  # of the past, every second
_RIDGE = np.array([1e-6, 1e-3, 1e-6])  # of each sum of squares: how little it takes to prefer the others


@dataclass(frozen=True, slots=True)
class Work:
    """Done in some time: counts, and seconds of the device."""

    steps: float
    answer_tokens: float
    prompt_tokens: float
    busy_s: float = 0.0

    def since(self, before: "Work") -> "Work":
        """What of it was done after `before`."""
        return Work(
            self.steps - before.steps,
            self.answer_tokens - before.answer_tokens,
            self.prompt_tokens - before.prompt_tokens,
            self.busy_s - before.busy_s,
        )


class StepCost:
    """Told of all workers' work second by second."""

    def __init__(self) -> None:
        self._squares: npt.NDArray[np.float64] = np.zeros((3, 3))
        self._products: npt.NDArray[np.float64] = np.zeros(3)
        self._costs = (0.0, 0.0, 0.0)

    @property
    def prompt_s(self) -> float:
        """Seconds of a prompt's token."""
        return self._costs[2]

    def fade(self) -> None:
        """A second has passed."""
        self._squares *= _KEEP
        self._products *= _KEEP

    def observe(self, work: Work) -> None:
        """What one worker did in it."""
        counts = np.array([work.steps, work.answer_tokens, work.prompt_tokens])
        self._squares += np.outer(counts, counts)
        self._products += counts * work.busy_s

    def learn(self) -> None:
        """Draws the line anew."""
        self._costs = _fit(self._squares, self._products)

    def at_best(self, answer_tokens: float, prompt_tokens: float, max_rows: int) -> float:
        """Seconds for so many tokens where they are computed in the fullest steps there are."""
        each, answer, prompt = self._costs
        return answer_tokens * (each / max_rows + answer) + prompt_tokens * prompt


def _fit(squares: npt.NDArray[np.float64], products: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Leaves out what never happened, then what would be negative, the worst first."""
    used = [n for n in range(3) if squares[n, n] > 0]
    costs = np.zeros(3)
    while used:
        scale = np.sqrt(squares[used, used])
        scaled = squares[np.ix_(used, used)] / np.outer(scale, scale) + np.diag(_RIDGE[used])
        found = np.linalg.solve(scaled, products[used] / scale) / scale
        if found.min() >= 0:
            costs[used] = found
            break
        used.pop(int(found.argmin()))
    return float(costs[0]), float(costs[1]), float(costs[2])
