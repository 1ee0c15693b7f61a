"""Picking tokens on a GPU without a sort: greedy, or min-p, top-k and top-p and then the Gumbel-max trick.

    scan     (row, segment)  best token of a segment; for a row with filters the highest x of each chunk
    choose   (row)           best of the segments; for a row with filters its floor, then the draw above it

x is a logit divided by the temperature, a chunk 128 tokens, a segment 32 chunks. What a row gets depends on
nothing else in the batch.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import torch
import triton
import triton.language as tl

from gpu_worker.kernels.launch_shapes import next_power_of_two
from gpu_worker.kernels.sample_floor import BLOCK, CHUNK, find_floor, list_chunks, read_chunks
from gpu_worker.sampling.batch import Picks

_SCAN_CHUNKS = tl.constexpr(32)
_SCAN_WARPS, _CHOOSE_WARPS = 8, 16

# As in gpu_worker/sampling/rng.py.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)
_BELOW_ONE = tl.constexpr(1 - 2**-24)
_UNIT = tl.constexpr(2**-31)


@triton.jit
def gumbel(key, tokens):
    """The numbers of gpu_worker/sampling/rng.py for a block of token ids: the same bits."""
    x = key.to(tl.uint64, bitcast=True) + (tokens + 1).to(tl.uint64) * _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    x = x ^ (x >> 31)
    u = ((x & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * _UNIT
    u = tl.minimum(u, _BELOW_ONE)
    # log(1 - u), its rounding undone by comparing what was taken off 1 with u (Kahan; see Higham 2002, 1.14).
    rest = 1.0 - u
    taken = 1.0 - rest
    exact = taken == 0.0
    log1p = tl.where(exact, -u, tl.log(rest) * (u / tl.where(exact, 1.0, taken)))
    return -tl.log(-log1p)


@triton.jit
def _has_filters(log_min_p, top_k, top_p):
    return (log_min_p > float("-inf")) | (top_k > 0) | (top_p < 1)


@triton.jit
def scan_kernel(
    best,  # [n, SEGMENTS] float32: highest x; with Gumbel noise in a random row without filters
    ids,  # [n, SEGMENTS] int32: its token, the lowest of several
    masses,  # [n, SEGMENTS] float32: sum of exp(x - best); only of rows with filters
    peaks,  # [n, CHUNKS] float32: highest x of each chunk; only of rows with filters
    logits,  # [n, VOCAB] float32 contiguous
    temperatures,  # [n] float32; this and the next four: see Picks
    keys,
    log_min_ps,
    top_ks,
    top_ps,
    VOCAB: tl.constexpr,
    SEGMENTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    RANDOM: tl.constexpr,
):
    """A program scans a segment of one row. Without RANDOM all rows are greedy."""
    row = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    chunks = segment * _SCAN_CHUNKS + tl.arange(0, _SCAN_CHUNKS)
    tokens = chunks[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = tl.load(logits + row * VOCAB + tokens, mask=tokens < VOCAB, other=float("-inf"))
    place = row * SEGMENTS + segment
    if RANDOM:
        temperature = tl.load(temperatures + row)
        if temperature > 0:
            x = tl.div_rn(x, temperature)
            if _has_filters(tl.load(log_min_ps + row), tl.load(top_ks + row), tl.load(top_ps + row)):
                highest = tl.max(x, axis=1)
                tl.store(peaks + row * CHUNKS + chunks, highest, mask=chunks < CHUNKS)
                top = tl.maximum(tl.max(highest, axis=0), -3e38)  # finite, if all of them are forbidden
                tl.store(masses + place, tl.sum(tl.sum(tl.exp(x - top), axis=1), axis=0))
            else:
                x += gumbel(tl.load(keys + row), tokens)
    top = tl.max(tl.max(x, axis=1), axis=0)
    tl.store(best + place, top)
    tl.store(ids + place, tl.min(tl.min(tl.where(x == top, tokens, VOCAB), axis=1), axis=0))


@triton.jit
def _draw(row, floor, key, VOCAB: tl.constexpr, CHUNKS: tl.constexpr):
    """The token among those that reach `floor` whose x with Gumbel noise is the highest."""
    count = list_chunks(row, floor, CHUNKS)
    best = float("-inf")
    token = VOCAB
    for start in range(0, count, BLOCK):
        x, tokens = read_chunks(row, start, count, VOCAB)
        x = tl.where(x >= floor, x + gumbel(key, tokens), float("-inf"))
        score = tl.max(tl.max(x, axis=1), axis=0)
        # Chunks are in ascending order, so an equal score later on is a higher id.
        if score > best:
            best = score
            token = tl.min(tl.min(tl.where(x == score, tokens, VOCAB), axis=1), axis=0)
    return token


@triton.jit
def choose_kernel(
    out,  # [n] int64
    listed,  # [n, CHUNKS] int32: room to list chunks in
    best,  # this and the next nine: as in scan_kernel
    ids,
    masses,
    peaks,
    logits,
    temperatures,
    keys,
    log_min_ps,
    top_ks,
    top_ps,
    VOCAB: tl.constexpr,
    SEGMENTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    RANDOM: tl.constexpr,
    ALL_SEGMENTS: tl.constexpr,  # the next power of two
    ALL_CHUNKS: tl.constexpr,
):
    """A program picks the token of one row."""
    row = tl.program_id(0).to(tl.int64)
    segments = tl.arange(0, ALL_SEGMENTS)
    there = segments < SEGMENTS
    places = row * SEGMENTS + segments
    scores = tl.load(best + places, mask=there, other=float("-inf"))
    top = tl.max(scores, axis=0)
    token = tl.min(tl.where(there & (scores == top), tl.load(ids + places, mask=there, other=VOCAB), VOCAB))
    if RANDOM:
        temperature = tl.load(temperatures + row)
        log_min_p, top_k, top_p = tl.load(log_min_ps + row), tl.load(top_ks + row), tl.load(top_ps + row)
        if (temperature > 0) & (top > float("-inf")) & _has_filters(log_min_p, top_k, top_p):
            chunks = tl.arange(0, ALL_CHUNKS)
            peak = tl.load(peaks + row * CHUNKS + chunks, mask=chunks < CHUNKS, other=float("-inf"))
            mass = tl.sum(tl.load(masses + places, mask=there, other=0.0) * tl.exp(scores - top), axis=0)
            its = (logits + row * VOCAB, temperature, listed + row * CHUNKS, peak, top)
            floor = find_floor(its, mass, log_min_p, top_k, top_p, VOCAB, CHUNKS)
            token = _draw(its, floor, tl.load(keys + row), VOCAB, CHUNKS)
    # Logits that are no numbers have no best one, and what is picked must still be a token.
    tl.store(out + row, tl.minimum(token, VOCAB - 1).to(tl.int64))


def launch_sizes(vocab: int) -> tuple[dict[str, int], dict[str, int]]:
    """Options of the two kernels. They hang on the model alone: nothing compiles while requests wait."""
    chunks = triton.cdiv(vocab, CHUNK.value)
    segments = triton.cdiv(chunks, _SCAN_CHUNKS.value)
    sizes = {"VOCAB": vocab, "SEGMENTS": segments, "CHUNKS": chunks}
    powers = {"ALL_SEGMENTS": next_power_of_two(segments), "ALL_CHUNKS": next_power_of_two(chunks)}
    return sizes | {"num_warps": _SCAN_WARPS}, sizes | powers | {"num_warps": _CHOOSE_WARPS}


def pick(logits: torch.Tensor, picks: Picks[torch.Tensor] | None) -> torch.Tensor:
    """As `gpu_worker.sampling.reference.pick`: tokens [n] int64 of `logits` [n, vocab] float32, contiguous.

    Leaves the logits as they are. Never waits for the device, and can be captured.
    """
    n, vocab = logits.shape
    scan, choose = launch_sizes(vocab)
    segments, chunks = scan["SEGMENTS"], scan["CHUNKS"]

    def empty(columns: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(n, columns, dtype=dtype, device=logits.device)

    out = torch.empty(n, dtype=torch.int64, device=logits.device)
    best, ids = empty(segments, torch.float32), empty(segments, torch.int32)
    if picks is None:
        # Arguments that greedy rows do not look at: anything of the right kind.
        masses, peaks, listed = best, best, ids
        asked = (best, out, best, ids, best)
    else:
        masses, peaks = empty(segments, torch.float32), empty(chunks, torch.float32)
        listed = empty(chunks, torch.int32)
        asked = (picks.temperature, picks.keys, picks.log_min_p, picks.top_k, picks.top_p)
    found = (best, ids, masses, peaks, logits, *asked)
    scan_kernel[(n, segments)](*found, RANDOM=picks is not None, **scan)
    choose_kernel[(n,)](out, listed, *found, RANDOM=picks is not None, **choose)
    return out
