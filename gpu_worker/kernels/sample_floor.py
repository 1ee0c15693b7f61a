"""What min-p, top-k and top-p come down to: a floor, the lowest x (logit / temperature) that is let in.

It is the largest x such that the tokens which reach it are at least top-k many, or at least top-p likely,
found by bisection. Only chunks whose highest x, their peak, reaches a value can have tokens that do: a pass
lists those chunks and reads them alone, usually a few percent of a large vocabulary.

A row is passed around as (logits, temperature, listed, peak, top): where its logits [VOCAB] float32 are, and
room for the list [CHUNKS] int32; peak [a power of two >= CHUNKS] float32 in registers; top, the highest x.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

CHUNK = tl.constexpr(128)  # tokens
BLOCK = tl.constexpr(32)  # chunks read at a time


@triton.jit
def _image(x):
    """An integer for each float32, in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _value(image):
    """The float32 of an image."""
    bits = image.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def list_chunks(row, floor, CHUNKS: tl.constexpr):
    """Lists the chunks that have tokens which reach `floor`, ascending; returns how many."""
    listed, peak = row[2], row[3]
    chunks = tl.arange(0, peak.shape[0])
    reaches = ((peak >= floor) & (chunks < CHUNKS)).to(tl.int32)
    # Nobody may be reading the last list any more, and all must see this one.
    tl.debug_barrier()
    tl.store(listed + tl.cumsum(reaches) - 1, chunks, mask=reaches > 0)
    tl.debug_barrier()
    return tl.sum(reaches)


@triton.jit
def read_chunks(row, start, count, VOCAB: tl.constexpr):
    """x and token ids of the listed chunks from `start` on, [BLOCK, CHUNK]; x is -inf where there is none."""
    logits, temperature, listed = row[0], row[1], row[2]
    places = start + tl.arange(0, BLOCK)
    # A chunk that is not there begins past the vocabulary.
    chunks = tl.load(listed + places, mask=places < count, other=VOCAB // CHUNK + 1)
    tokens = chunks[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = tl.load(logits + tokens, mask=tokens < VOCAB, other=float("-inf"))
    return tl.div_rn(x, temperature), tokens


@triton.jit
def _search(row, floor, by_mass, target, VOCAB: tl.constexpr, CHUNKS: tl.constexpr):
    """The largest x above `floor` such that all that reach it weigh `target` together; `floor` if none is.

    A token weighs exp(x - top) if `by_mass`, else 1.
    """
    peak, top = row[3], row[4]
    low, high = _image(floor), _image(top)
    while low < high:
        middle = (low + high + 1) >> 1
        trial = _value(middle)
        count = list_chunks(row, trial, CHUNKS)
        weight = tl.zeros([BLOCK, CHUNK], tl.float32)
        above = tl.full([BLOCK, CHUNK], float("inf"), tl.float32)
        below = tl.full([BLOCK, CHUNK], float("-inf"), tl.float32)
        for start in range(0, count, BLOCK):
            x = read_chunks(row, start, count, VOCAB)[0]
            inside = x >= trial
            weight += tl.where(inside, tl.where(by_mass, tl.exp(x - top), 1.0), 0.0)
            above = tl.minimum(above, tl.where(inside, x, float("inf")))
            below = tl.maximum(below, tl.where(inside, float("-inf"), x))
        # Bounds move on to the next x there is: many logits have few different values.
        if tl.sum(tl.sum(weight, axis=1), axis=0) >= target:
            low = tl.maximum(_image(tl.min(tl.min(above, axis=1), axis=0)), middle)
        else:
            unlisted = tl.max(tl.where(peak < trial, peak, float("-inf")), axis=0)
            next_below = tl.maximum(tl.max(tl.max(below, axis=1), axis=0), unlisted)
            high = tl.minimum(_image(next_below), middle - 1)
    return _value(low)


@triton.jit
def _mass_above(row, floor, VOCAB: tl.constexpr, CHUNKS: tl.constexpr):
    """Sum of exp(x - top) of the tokens that reach `floor`."""
    top = row[4]
    count = list_chunks(row, floor, CHUNKS)
    mass = tl.zeros([BLOCK, CHUNK], tl.float32)
    for start in range(0, count, BLOCK):
        x = read_chunks(row, start, count, VOCAB)[0]
        mass += tl.where(x >= floor, tl.exp(x - top), 0.0)
    return tl.sum(tl.sum(mass, axis=1), axis=0)


@triton.jit
def find_floor(row, mass, log_min_p, top_k, top_p, VOCAB: tl.constexpr, CHUNKS: tl.constexpr):
    """The floor of min-p, then top-k, then top-p. mass: sum of exp(x - top) of all tokens."""
    peak, top = row[3], row[4]
    # p < min_p * max p, in logarithms.
    floor = top + log_min_p
    if (top_k > 0) & (top_k < VOCAB):
        if top_k <= CHUNKS:
            # The lowest peak is reached by as many tokens as there are chunks: no need to look below it.
            there = tl.arange(0, peak.shape[0]) < CHUNKS
            floor = tl.maximum(floor, tl.min(tl.where(there, peak, top), axis=0))
        floor = _search(row, floor, False, top_k, VOCAB, CHUNKS)
    if top_p < 1:
        if floor > float("-inf"):
            mass = _mass_above(row, floor, VOCAB, CHUNKS)
        # Below this, the whole vocabulary would weigh less than what top-p leaves out.
        left_out = tl.log(tl.maximum((1.0 - top_p) * mass / VOCAB, 1e-30)) - 1e-3
        floor = _search(row, tl.maximum(floor, top + left_out), True, top_p * mass, VOCAB, CHUNKS)
    return floor
