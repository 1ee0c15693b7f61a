"""How long a step takes on one H200 with llama-8b in bfloat16, from what was measured (docs/benchmarks.md).

    step = 0.68 ms + products + 10 µs a row + 0.032 µs a token of context read by rows that decode
           + 1.7 ns a prompt token and token of context before it
    products(n) = the larger of 4 ms + 4 µs n (weights are read) and 21.4 µs n (they are multiplied)

    a decode step of 1 / 32 / 128 rows at 384 tokens   4.7 / 5.5 / 8.0 ms    measured 4.68 / 5.32 / 7.68
    prompts of 8,192 tokens                            35,300 tokens/s       measured 35,236
    16 prompts of 32,000 tokens, 256 out               31 s                  measured 30.5 s

The context's bytes are 131,072 a token at 4.1 TB/s.
"""

from collections.abc import Sequence

ROW_US = 10.0
CONTEXT_US = 0.032
ATTENTION_US = 0.0017
_FIXED_US = 680.0
_WEIGHTS_US = 4000.0
_WEIGHTS_ROW_US = 4.0
_PRODUCT_US = 21.4


def step_us(rows: int, context: int, chunks: Sequence[tuple[int, int]] = ()) -> float:
    """Microseconds of a step: `rows` decode over `context` tokens in all, and chunks of prompts.

    A chunk is (tokens, tokens before it).
    """
    tokens = rows + sum(length for length, _ in chunks)
    products = max(_WEIGHTS_US + _WEIGHTS_ROW_US * tokens, _PRODUCT_US * tokens)
    prompts = sum(length * (before + length / 2) for length, before in chunks)
    return (
        _FIXED_US + products + ROW_US * (rows + len(chunks)) + CONTEXT_US * context + ATTENTION_US * prompts
    )
