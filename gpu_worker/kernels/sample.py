"""Picking tokens on a GPU without a sort: greedy, or min-p, top-k and top-p with the Gumbel-max trick.

    scan             (row, segment)  the best token of a segment; Gumbel noise is in, if the row is random
    choose           (row)           the best of the segments; instead of that, if a row has filters:
    weigh            (row, segment)  what tokens weigh that are more likely than the best of the segments
    choose_filtered  (row)           that best one if it is inside, else the next one inside

The best token of all is inside of a nucleus if those that are more likely weigh less than top_p, inside of
the top k if they are fewer than k. Where it is inside, it is the best of those inside as well, and no
threshold needs to be known. Otherwise all that are not more likely are outside too, and the best of the rest
is looked at.

x is a logit divided by the temperature, the mass of a token exp(x - highest x of the row). What a row gets
depends on nothing else in the batch.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import torch
import triton
import triton.language as tl

from gpu_worker.kernels.launch_shapes import next_power_of_two
from gpu_worker.kernels.sample_redraw import SEGMENT, redraw, top_k_floor, weigh_row
from gpu_worker.kernels.sample_scores import (
    NAN_RANK,
    NO_RANK,
    gumbel,
    has_filters,
    is_inside,
    load_x,
    mass_of,
    min_p_floor,
    rank,
    token_of,
    weigh,
)
from gpu_worker.sampling.batch import Picks

SCAN_WARPS, WEIGH_WARPS, CHOOSE_WARPS, CHOOSE_FILTERED_WARPS = 8, 8, 1, 16


@triton.jit
def scan_kernel(
    ranks,  # [n, SEGMENTS] int64: see `rank`; the highest
    peaks,  # [n, SEGMENTS] float32: highest x; None without RANDOM
    logits,  # [n, VOCAB] contiguous
    temperatures,  # [n] float32, see Picks; None without RANDOM
    keys,  # [n] int64, see Picks; None without RANDOM
    VOCAB: tl.constexpr,
    SEGMENTS: tl.constexpr,
    RANDOM: tl.constexpr,
):
    """A program scans a segment of one row. Without RANDOM all rows are greedy."""
    row = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    tokens = segment * SEGMENT + tl.arange(0, SEGMENT)
    place = row * SEGMENTS + segment
    found = tl.load(logits + row * VOCAB + tokens, mask=tokens < VOCAB, other=float("-inf"))
    scores = found.to(tl.float32)
    if RANDOM:
        temperature = tl.load(temperatures + row)
        if temperature > 0:
            x = tl.div_rn(scores, temperature)
            scores = x + gumbel(tl.load(keys + row), tokens)
            tl.store(peaks + place, tl.max(x, axis=0))
    tl.store(ranks + place, tl.max(rank(scores, tokens), axis=0))


@triton.jit
def _best_token(best, VOCAB: tl.constexpr):
    """The token of the best rank, -1 if that says that logits are no numbers."""
    return tl.where(best == NAN_RANK, -1, token_of(best, VOCAB))


@triton.jit
def _put(token, row, out, table, places):
    tl.store(out + row, token.to(tl.int64))
    if table is not None:
        # Steps that are on their way already look it up, so it must be a token.
        tl.store(table + tl.load(places + row), tl.maximum(token, 0))


@triton.jit
def choose_kernel(
    out,  # [n] int64
    table,  # [size] int32 or None: gets the tokens as well
    places,  # [n] int64 or None: where in the table
    ranks,  # as in scan_kernel
    VOCAB: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ALL_SEGMENTS: tl.constexpr,  # the next power of two
):
    """A program picks the token of one row without filters."""
    row = tl.program_id(0).to(tl.int64)
    segments = tl.arange(0, ALL_SEGMENTS)
    found = tl.load(ranks + row * SEGMENTS + segments, mask=segments < SEGMENTS, other=NO_RANK)
    _put(_best_token(tl.max(found, axis=0), VOCAB), row, out, table, places)


@triton.jit
def weigh_kernel(
    sums,  # [n, 3, SEGMENTS] float32: of what `weigh` gives for the best token; rows with filters only
    ranks,  # this and the next four: as in scan_kernel
    peaks,
    logits,
    temperatures,
    log_min_ps,  # this and the next two: see Picks
    top_ks,
    top_ps,
    VOCAB: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ALL_SEGMENTS: tl.constexpr,
):
    """A program weighs a segment of one row."""
    row = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    log_min_p = tl.load(log_min_ps + row)
    if has_filters(log_min_p, tl.load(top_ks + row), tl.load(top_ps + row)):
        temperature = tl.load(temperatures + row)
        logits += row * VOCAB
        x = load_x(logits, temperature, segment * SEGMENT + tl.arange(0, SEGMENT), VOCAB)
        segments = tl.arange(0, ALL_SEGMENTS)
        there = segments < SEGMENTS
        best = tl.max(tl.load(ranks + row * SEGMENTS + segments, mask=there, other=NO_RANK), axis=0)
        top = tl.max(tl.load(peaks + row * SEGMENTS + segments, mask=there, other=float("-inf")), axis=0)
        x_t = load_x(logits, temperature, token_of(best, VOCAB), VOCAB)
        above, count, kept = weigh(x, top, x_t, min_p_floor(top, log_min_p))
        place = sums + row * 3 * SEGMENTS + segment
        tl.store(place, tl.sum(above, axis=0))
        tl.store(place + SEGMENTS, tl.sum(count, axis=0))
        tl.store(place + 2 * SEGMENTS, tl.sum(kept, axis=0))


@triton.jit
def choose_filtered_kernel(
    out,  # this and the next two: as in choose_kernel
    table,
    places,
    sums,  # as in weigh_kernel
    ranks,  # this and the next four: as in scan_kernel
    peaks,
    logits,
    temperatures,
    keys,
    log_min_ps,  # this and the next two: see Picks
    top_ks,
    top_ps,
    VOCAB: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ALL_SEGMENTS: tl.constexpr,
):
    """A program picks the token of one row, which may have filters."""
    row = tl.program_id(0).to(tl.int64)
    segments = tl.arange(0, ALL_SEGMENTS)
    there = segments < SEGMENTS
    found = tl.load(ranks + row * SEGMENTS + segments, mask=there, other=NO_RANK)
    token = _best_token(tl.max(found, axis=0), VOCAB)
    log_min_p, top_k, top_p = tl.load(log_min_ps + row), tl.load(top_ks + row), tl.load(top_ps + row)
    if has_filters(log_min_p, top_k, top_p) & (token >= 0):
        temperature = tl.load(temperatures + row)
        logits += row * VOCAB
        x_t = load_x(logits, temperature, token, VOCAB)
        peak = tl.load(peaks + row * SEGMENTS + segments, mask=there, other=float("-inf"))
        top = tl.max(peak, axis=0)
        parts = sums + row * 3 * SEGMENTS + segments
        above = tl.sum(tl.load(parts, mask=there, other=0.0), axis=0)
        count = tl.sum(tl.load(parts + SEGMENTS, mask=there, other=0.0), axis=0)
        kept = tl.sum(tl.load(parts + 2 * SEGMENTS, mask=there, other=0.0), axis=0)
        least = min_p_floor(top, log_min_p)
        # top-p counts what top-k leaves, which is dear to know. It is this much at least, if x_t is among it.
        unsure = (top_k > 0) & (top_p < 1)
        sure = tl.where(unsure, tl.minimum(kept, above + mass_of(x_t, top)), kept)
        inside = is_inside(x_t, above, count, least, top_k, top_p, sure)
        if inside == 0:
            if unsure:
                least = top_k_floor(logits, temperature, top, least, top_k, VOCAB)
                kept = weigh_row(logits, temperature, top, x_t, least, VOCAB)[2]
                inside = is_inside(x_t, above, count, least, top_k, top_p, kept)
            if inside == 0:
                key = tl.load(keys + row)
                token = redraw(
                    logits, temperature, key, found, peak, top, x_t, least, top_k, top_p, kept, VOCAB
                )
    _put(token, row, out, table, places)


def launch_sizes(vocab: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants of `scan`, and of the other kernels. They hang on the model alone: nothing compiles while
    requests wait."""
    segments = triton.cdiv(vocab, SEGMENT.value)
    sizes = {"VOCAB": vocab, "SEGMENTS": segments}
    return sizes, sizes | {"ALL_SEGMENTS": next_power_of_two(segments)}


def pick(
    logits: torch.Tensor,
    picks: Picks[torch.Tensor] | None,
    table: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `gpu_worker.sampling.reference.pick`: tokens [n] int64 of `logits` [n, vocab] float32, bfloat16 or
    float16, contiguous. `table` and `places` are given both or neither.

    Two launches, three where a row has filters. Leaves the logits as they are. Never waits for the device,
    and can be captured.
    """
    n = len(logits)
    scan, choose = launch_sizes(logits.shape[1])
    grid = (n, scan["SEGMENTS"])
    out = torch.empty(n, dtype=torch.int64, device=logits.device)
    ranks = torch.empty(grid, dtype=torch.int64, device=logits.device)
    if picks is None:
        scan_kernel[grid](ranks, None, logits, None, None, **scan, RANDOM=False, num_warps=SCAN_WARPS)
        choose_kernel[(n,)](out, table, places, ranks, **choose, num_warps=CHOOSE_WARPS)
        return out
    peaks = torch.empty(grid, dtype=torch.float32, device=logits.device)
    temperature, filters = picks.temperature, (picks.log_min_p, picks.top_k, picks.top_p)
    scan_kernel[grid](
        ranks, peaks, logits, temperature, picks.keys, **scan, RANDOM=True, num_warps=SCAN_WARPS
    )
    if not picks.filtered:
        choose_kernel[(n,)](out, table, places, ranks, **choose, num_warps=CHOOSE_WARPS)
        return out
    sums = torch.empty(n, 3, scan["SEGMENTS"], dtype=torch.float32, device=logits.device)
    found = (sums, ranks, peaks, logits, temperature)
    weigh_kernel[grid](*found, *filters, **choose, num_warps=WEIGH_WARPS)
    choose_filtered_kernel[(n,)](
        out, table, places, *found, picks.keys, *filters, **choose, num_warps=CHOOSE_FILTERED_WARPS
    )
    return out
