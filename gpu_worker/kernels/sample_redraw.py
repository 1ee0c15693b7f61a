"""The draw of a row whose first one the filters turned down: one program goes on alone, over the whole row.

All loops are bounded, and what they branch on is reduced over all threads, so that these agree.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.sample_scores import (
    NO_RANK,
    gumbel,
    image,
    is_inside,
    load_x,
    rank,
    token_of,
    value,
    weigh,
)

SEGMENT = tl.constexpr(2048)  # tokens
_BLOCK = tl.constexpr(8192)  # tokens read at a time
# float32 has less than 2**32 values.
_MAX_HALVINGS = tl.constexpr(33)
# Each draw divides the mass above the floor by a number whose logarithm is exponentially distributed with
# mean 1 (Renyi's records). Of a million tokens that are as likely, one is left after 14 draws on average;
# more than 64 take place once in 10**20 times.
_DRAWS = tl.constexpr(64)


@triton.jit
def weigh_row(logits, temperature, top, x_t, least, VOCAB: tl.constexpr):
    """The sums of `weigh` over a row."""
    above = tl.zeros([_BLOCK], tl.float32)
    count = tl.zeros([_BLOCK], tl.float32)
    kept = tl.zeros([_BLOCK], tl.float32)
    for start in range(0, VOCAB, _BLOCK):
        x = load_x(logits, temperature, start + tl.arange(0, _BLOCK), VOCAB)
        weighed = weigh(x, top, x_t, least)
        above += weighed[0]
        count += weighed[1]
        kept += weighed[2]
    return tl.sum(above, axis=0), tl.sum(count, axis=0), tl.sum(kept, axis=0)


@triton.jit
def top_k_floor(logits, temperature, top, least, top_k, VOCAB: tl.constexpr):
    """The top_k-th highest x of a row, or `least` if fewer reach that; by bisection over images."""
    low, high = image(least), image(top)
    halvings = 0
    while (low < high) & (halvings < _MAX_HALVINGS):
        halvings += 1
        middle = (low + high + 1) >> 1
        trial = value(middle)
        count = tl.zeros([_BLOCK], tl.int32)
        next_above = tl.full([_BLOCK], float("inf"), tl.float32)
        next_below = tl.full([_BLOCK], float("-inf"), tl.float32)
        for start in range(0, VOCAB, _BLOCK):
            x = load_x(logits, temperature, start + tl.arange(0, _BLOCK), VOCAB)
            reaches = x >= trial
            count += reaches.to(tl.int32)
            next_above = tl.minimum(next_above, tl.where(reaches, x, float("inf")))
            next_below = tl.maximum(next_below, tl.where(reaches, float("-inf"), x))
        enough = tl.sum(count, axis=0) >= top_k
        # Bounds move on to the next x there is: after a few steps, none is left between them.
        raised = tl.maximum(image(tl.min(next_above, axis=0)), middle)
        lowered = tl.minimum(image(tl.max(next_below, axis=0)), middle - 1)
        low, high = tl.where(enough, raised, low), tl.where(enough, high, lowered)
    return value(low)


@triton.jit
def redraw(
    logits,  # of the row; the next two are its as well
    temperature,
    key,
    ranks,  # [a power of two] int64: the best rank of each segment
    peaks,  # [a power of two] float32: the highest x of each segment
    top,  # the highest x
    floor,  # x must be higher: what the first draw gave
    least,  # x must not be lower: what min-p says, and top-k if `kept` takes account of it
    top_k,
    top_p,
    kept,  # as in `is_inside`
    VOCAB: tl.constexpr,
):
    """The token with the best rank among those that filters let in.

    The best one above the floor is taken if it is inside, else its x is the new floor. A segment is read
    again only once its best token is the best of all and turns out not to be above the floor. After so many
    turns that there were _DRAWS draws at least, only tokens with the highest x are left to be drawn.
    """
    SEGMENTS: tl.constexpr = (VOCAB + SEGMENT - 1) // SEGMENT
    LAST_TURN: tl.constexpr = _DRAWS * (SEGMENTS + 1)
    segments = tl.arange(0, ranks.shape[0])
    token = -1
    turn = 0
    while (token < 0) & (turn < LAST_TURN + SEGMENTS + 1):
        turn += 1
        least = tl.where(turn > LAST_TURN, top, least)
        ranks = tl.where((peaks > floor) & (peaks >= least), ranks, NO_RANK)
        drawn = token_of(tl.max(ranks, axis=0), VOCAB)
        x_t = load_x(logits, temperature, drawn, VOCAB)
        if (x_t > floor) & (x_t >= least):
            above, count, _ = weigh_row(logits, temperature, top, x_t, least, VOCAB)
            token = tl.where(is_inside(x_t, above, count, least, top_k, top_p, kept), drawn, -1)
            floor = x_t
        else:
            segment = drawn // SEGMENT
            tokens = segment * SEGMENT + tl.arange(0, SEGMENT)
            x = load_x(logits, temperature, tokens, VOCAB)
            scores = tl.where((x > floor) & (x >= least), x + gumbel(key, tokens), float("-inf"))
            ranks = tl.where(segments == segment, tl.max(rank(scores, tokens), axis=0), ranks)
    # None was found only if all tokens are forbidden.
    return tl.maximum(token, 0)
