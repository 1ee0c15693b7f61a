"""The models whose shapes are measured, and what each operation has to move or compute at least.

A byte counts once however often a kernel reads it, and activations and weights are in 16 bits: two ways to do
the same are divided by the same figure. FLOP are those of matrix products, two for a multiply and add.
"""

from dataclasses import dataclass

BLOCK_SIZE = 16
# Of keys and values, weights and activations; sampling has logits in float32.
_BYTES = 2


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes of a decoder; `qk_norm` as Qwen3."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    qk_norm: bool

    @property
    def packed(self) -> int:
        """Outputs of the projection to queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def mixed(self) -> int:
        """Outputs of attention."""
        return self.num_heads * self.head_dim

    @property
    def token_bytes(self) -> int:
        """Of the key and the value of one token."""
        return 2 * self.num_kv_heads * self.head_dim * _BYTES


LLAMA_8B = Model("llama-8b", 32, 8, 128, 4096, 14336, 128_256, qk_norm=False)
QWEN3_06B = Model("qwen3-0.6b", 16, 8, 128, 1024, 3072, 151_936, qk_norm=True)


def decode_bytes(model: Model, rows: int, context: int) -> int:
    """Keys and values of `context` tokens of each row, the new one's among them; projection and result."""
    return rows * (context * model.token_bytes + (model.packed + model.mixed) * _BYTES)


def prefill_flop(model: Model, query: int, context: int) -> int:
    """Scores and mixed values of `query` tokens that see `context` tokens, each other up to themselves."""
    pairs = query * context + query * (query + 1) // 2
    return 4 * model.mixed * pairs


def prefill_bytes(model: Model, query: int, context: int) -> int:
    """Keys and values, the projection and the result."""
    return (query + context) * model.token_bytes + query * (model.packed + model.mixed) * _BYTES


def product_bytes(rows: int, outputs: int, inputs: int) -> int:
    """What a product reads: the weights and the rows."""
    return (outputs + rows) * inputs * _BYTES


def norm_bytes(rows: int, hidden: int, *, add: bool) -> int:
    """Rows in and out, and if `add` the residual stream in and out; the weights."""
    return ((4 if add else 2) * rows + 1) * hidden * _BYTES


def rope_bytes(model: Model, tokens: int) -> int:
    """The projection in, queries and keys out; keys and values into the cache; the angles in float32."""
    rotated = (model.num_heads + model.num_kv_heads) * model.head_dim
    return tokens * ((model.packed + rotated) * _BYTES + model.token_bytes + 4 * model.head_dim)


def gather_bytes(model: Model, tokens: int) -> int:
    """Keys and values in and out."""
    return 2 * tokens * model.token_bytes


def swiglu_bytes(rows: int, intermediate: int) -> int:
    """Gates and ups in, their product out."""
    return 3 * rows * intermediate * _BYTES


def sampling_bytes(rows: int, vocab: int) -> int:
    """The logits, once."""
    return 4 * rows * vocab
