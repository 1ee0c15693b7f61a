"""What one worker computed of prompts lately: who waits for a row can tell that a long one was before it."""

from collections import deque
from typing import NamedTuple

_STEPS = 256  # that are remembered


class PromptWork(NamedTuple):
    """Milliseconds in which a worker computed steps with prompts in them, and the prompt tokens of these."""

    ms: float
    tokens: int


class PromptLog:
    """Steps that had prompts in them. Others leave no mark, so a steady decode pays nothing."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, int]] = deque(maxlen=_STEPS)  # (Unix ns, busy ns, prompt tokens)

    def answered(self, at_ns: int, busy_ns: int, tokens: int) -> None:
        """A step with so many prompt tokens took the worker `busy_ns`, up to `at_ns` or thereabouts."""
        self._steps.append((at_ns, busy_ns, tokens))

    def since(self, start_ns: int) -> PromptWork:
        """What has been answered since `start_ns`; of a step that had begun before, the part from then on."""
        busy = tokens = 0
        for at_ns, busy_ns, prompt_tokens in reversed(self._steps):
            if at_ns <= start_ns:
                break
            busy += min(busy_ns, at_ns - start_ns)
            tokens += prompt_tokens
        return PromptWork(busy / 1e6, tokens)
