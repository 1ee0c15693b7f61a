"""What each row asks of the sampler: one array per parameter, indexed by row."""

import math
from dataclasses import dataclass
from enum import IntFlag, auto

import numpy as np
import numpy.typing as npt

from batchyard.errors import ProtocolError
from protos.packing import unpack_f32, unpack_i32
from protos.sampling_pb2 import Sampling

# Below this a temperature is greedy: dividing by it would overflow.
GREEDY_BELOW = 1e-5

Ids = npt.NDArray[np.int32]


class Wants(IntFlag):
    """The parts of the sampler that a row needs: whether any row of a step does is one reduction."""

    RANDOM = auto()
    MIN_P = auto()
    TOP_K = auto()
    TOP_P = auto()
    PENALTIES = auto()
    BIAS = auto()
    MIN_TOKENS = auto()
    LOGPROBS = auto()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's `Sampling` message, unpacked and checked.

    stop_ids, bias_ids [n] int32, bias_values [n] float32. `logprobs` and `prompt_logprobs` are -1 for none.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    min_tokens: int
    stop_ids: Ids
    bias_ids: Ids
    bias_values: npt.NDArray[np.float32]
    logprobs: int
    prompt_logprobs: int

    @property
    def wants(self) -> Wants:
        """What this request needs. Filters never change what a greedy one picks, so it does without them."""
        random = self.temperature >= GREEDY_BELOW
        penalised = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        asked = {
            Wants.RANDOM: random,
            Wants.MIN_P: random and self.min_p > 0,
            Wants.TOP_K: random and self.top_k > 0,
            Wants.TOP_P: random and self.top_p < 1,
            Wants.PENALTIES: penalised,
            Wants.BIAS: len(self.bias_ids) > 0,
            Wants.MIN_TOKENS: self.min_tokens > 0 and len(self.stop_ids) > 0,
            Wants.LOGPROBS: self.logprobs >= 0,
        }
        return Wants(sum(flag for flag, wanted in asked.items() if wanted))


def parse_sampling(message: Sampling, vocab_size: int) -> SamplingParams:
    """The parameters in `message`. Stop tokens outside the vocabulary are left out: nothing can sample them.

    Raises ProtocolError for a value outside its range.
    """
    try:
        stop_ids = unpack_i32(message.stop_token_ids)
        bias_ids = unpack_i32(message.bias_ids)
        bias_values = unpack_f32(message.bias_values)
    except ValueError as error:
        raise ProtocolError(f"packed sampling parameters are cut short: {error}") from error
    params = SamplingParams(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=min(message.top_k, vocab_size),
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed,
        min_tokens=message.min_tokens,
        stop_ids=stop_ids[(stop_ids >= 0) & (stop_ids < vocab_size)],
        bias_ids=bias_ids,
        bias_values=bias_values,
        logprobs=_count(message, "logprobs", vocab_size),
        prompt_logprobs=_count(message, "prompt_logprobs", vocab_size),
    )
    _check(params, vocab_size)
    return params


def _count(message: Sampling, field: str, vocab_size: int) -> int:
    if not message.HasField(field):  # type: ignore[arg-type]  # a literal of the stub
        return -1
    count: int = getattr(message, field)
    return max(0, min(count, vocab_size))


def _check(params: SamplingParams, vocab_size: int) -> None:
    ranges = (
        ("temperature", 0, math.inf),
        ("top_p", 0, 1),
        ("top_k", 0, math.inf),
        ("min_p", 0, 1),
        ("min_tokens", 0, math.inf),
        ("presence_penalty", -math.inf, math.inf),
        ("frequency_penalty", -math.inf, math.inf),
    )
    for name, least, most in ranges:
        value = getattr(params, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise ProtocolError(f"{name} is {value}, outside {least} to {most}")
    if not 0 < params.repetition_penalty < math.inf:
        raise ProtocolError(f"repetition_penalty is {params.repetition_penalty}, not a positive number")
    if len(params.bias_ids) != len(params.bias_values):
        raise ProtocolError(f"{len(params.bias_ids)} bias_ids, but {len(params.bias_values)} bias_values")
    if np.any((params.bias_ids < 0) | (params.bias_ids >= vocab_size)):
        raise ProtocolError(f"bias_ids has a token outside the vocabulary of {vocab_size}")


class SamplingTable:
    """The sampling parameters of `max_rows` rows, [max_rows] each. Rows that were never set are undefined."""

    def __init__(self, max_rows: int) -> None:
        self.wants = np.zeros(max_rows, np.int64)
        self.temperature = np.zeros(max_rows, np.float32)
        self.top_p = np.zeros(max_rows, np.float32)
        self.top_k = np.zeros(max_rows, np.int64)
        self.min_p = np.zeros(max_rows, np.float32)
        self.repetition_penalty = np.zeros(max_rows, np.float32)
        self.presence_penalty = np.zeros(max_rows, np.float32)
        self.frequency_penalty = np.zeros(max_rows, np.float32)
        self.seed = np.zeros(max_rows, np.uint64)
        self.min_tokens = np.zeros(max_rows, np.int64)
        self.logprobs = np.zeros(max_rows, np.int64)
        self.prompt_logprobs = np.zeros(max_rows, np.int64)
        self.stop_ids: list[Ids] = [np.empty(0, np.int32)] * max_rows
        self.biases: list[tuple[Ids, npt.NDArray[np.float32]]] = [
            (np.empty(0, np.int32), np.empty(0, np.float32))
        ] * max_rows

    def set(self, row: int, params: SamplingParams) -> None:
        """`row` belongs to a request with `params` from now on."""
        self.wants[row] = params.wants
        self.temperature[row] = params.temperature
        self.top_p[row] = params.top_p
        self.top_k[row] = params.top_k
        self.min_p[row] = params.min_p
        self.repetition_penalty[row] = params.repetition_penalty
        self.presence_penalty[row] = params.presence_penalty
        self.frequency_penalty[row] = params.frequency_penalty
        self.seed[row] = params.seed
        self.min_tokens[row] = params.min_tokens
        self.logprobs[row] = params.logprobs
        self.prompt_logprobs[row] = params.prompt_logprobs
        self.stop_ids[row] = params.stop_ids
        self.biases[row] = (params.bias_ids, params.bias_values)
