"""What picking tokens is made of: Gumbel noise, ranks that order tokens by score, and what tokens weigh."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

# As in gpu_worker/sampling/rng.py.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)
_BELOW_ONE = tl.constexpr(1 - 2**-24)
_UNIT = tl.constexpr(2**-31)

# x ^ _LAST_ID turns the order of ids around.
_LAST_ID = tl.constexpr(0x7FFFFFFF)
# The rank of no token: below all that `rank` gives.
NO_RANK = tl.constexpr(-(2**63))
# The rank of a token whose score is no number: above all others.
NAN_RANK = tl.constexpr(2**63 - 1)


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
def image(x):
    """An int64 for each float32, in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def value(image):
    """The float32 of an image."""
    bits = image.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def rank(scores, tokens):
    """One int64 for each token: higher for a higher score, among equals for a lower id; NAN_RANK for NaN."""
    # Adding 0 makes -0 the 0 that it equals.
    ranks = (image(scores + 0.0) << 32) | (tokens ^ _LAST_ID).to(tl.int64)
    return tl.where(scores == scores, ranks, NAN_RANK)


@triton.jit
def token_of(rank, VOCAB: tl.constexpr):
    """Which token has this rank, int32; some token for NO_RANK and NAN_RANK."""
    return tl.minimum((rank & _LAST_ID).to(tl.int32) ^ _LAST_ID, VOCAB - 1)


@triton.jit
def load_x(logits, temperature, tokens, VOCAB: tl.constexpr):
    """logit / temperature of a row's tokens, float32; -inf past the vocabulary."""
    found = tl.load(logits + tokens, mask=tokens < VOCAB, other=float("-inf"))
    return tl.div_rn(found.to(tl.float32), temperature)


@triton.jit
def has_filters(log_min_p, top_k, top_p):
    return (log_min_p > float("-inf")) | (top_k > 0) | (top_p < 1)


@triton.jit
def min_p_floor(top, log_min_p):
    """The lowest x that min-p lets in when the highest is `top`."""
    return tl.where(log_min_p > float("-inf"), top + log_min_p, float("-inf"))


@triton.jit
def mass_of(x, top):
    """exp(x - top), and 0 if all tokens of the row are forbidden."""
    return tl.exp(x - tl.maximum(top, -3e38))


@triton.jit
def weigh(x, top, x_t, least):
    """For each token, float32: its mass if x > x_t, 1 if x > x_t, and its mass if x >= least; otherwise 0."""
    mass = mass_of(x, top)
    higher = x > x_t
    return tl.where(higher, mass, 0.0), higher.to(tl.float32), tl.where(x >= least, mass, 0.0)


@triton.jit
def is_inside(x_t, above, count, least, top_k, top_p, kept):
    """Whether filters let in a token with x_t, when `count` tokens that weigh `above` have a higher x.

    least: the lowest x that min-p lets in; kept: the mass of what min-p and top-k leave.
    """
    fits = (x_t >= least) & ((top_k <= 0) | (count < top_k)) & ((top_p >= 1) | (above < top_p * kept))
    return (count == 0) | fits
