"""How long a step takes on one H200 with llama-8b in bfloat16, from what was measured (docs/benchmarks.md).

    step = 0.68 ms + products + 5 µs a row + 0.032 µs a token of context read by rows that decode
           with prompts 0.29 ms more + 2.5 µs a prompt token + 0.9 ns a prompt token and token before it
    products(n)   of all weights but the last, by the rows of the graph that n tokens are padded to

    a decode step of 1 / 32 / 128 rows at 384 tokens   4.1 / 5.2 / 7.2 ms    measured 4.1 / 4.8 / 7.2
    48 rows at 400 tokens, and prompts of 256 / 900    9.3 / 22.9 ms         measured 9.5 / 21.5
    512 rows at 700 tokens, and prompts of 0 / 512     24.0 / 34.0 ms        measured 22.8 / 32.5
    prompts of 8,192 tokens                            38,600 tokens/s       measured 37,700

The context's bytes are 131,072 a token at 4.1 TB/s. A card at its power limit, as in a long queue, is slower.
"""

from bisect import bisect_left
from collections.abc import Sequence

ROW_US = 5.0
CONTEXT_US = 0.032
ATTENTION_US = 0.0009
_FIXED_US = 680.0
_PROMPTS_US = 290.0
_PROMPT_TOKEN_US = 2.5
_SIZES = (1, 8, 32, 64, 96, 128, 160, 192, 256, 320, 384, 432, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
_PRODUCTS_MS = (
    *(3.4, 3.5, 3.6, 4.0, 4.1, 4.3, 4.6, 5.1, 5.6, 6.6),
    *(7.5, 8.9, 9.3, 11.8, 14.0, 17.9, 18.5, 24.0, 27.5, 38.3),
)
_PRODUCTS_ROW_US = 19.5


def step_us(rows: int, context: int, chunks: Sequence[tuple[int, int]] = ()) -> float:
    """Microseconds of a step: `rows` decode over `context` tokens in all, and chunks of prompts.

    A chunk is (tokens, tokens before it).
    """
    prompts = sum(length for length, _ in chunks)
    seen = sum(length * (before + length / 2) for length, before in chunks)
    fixed = _FIXED_US + (_PROMPTS_US if chunks else 0.0)
    own = ROW_US * (rows + len(chunks)) + _PROMPT_TOKEN_US * prompts
    return fixed + products_us(rows + prompts) + own + CONTEXT_US * context + ATTENTION_US * seen


def products_us(tokens: int) -> float:
    """Microseconds of the matrix products of a step."""
    if tokens > _SIZES[-1]:
        return _PRODUCTS_ROW_US * tokens
    return 1000 * _PRODUCTS_MS[bisect_left(_SIZES, tokens)]
