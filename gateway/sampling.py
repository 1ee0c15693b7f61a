"""From the parameters of a request, REST or gRPC, to what the generator needs: checks that need the model."""

import hashlib
from collections.abc import Iterable

from gateway.errors import BadParameter
from gateway.schema.common import SamplingFields
from gateway.submission import Limits
from gateway.types import SamplingParams

# Below this a temperature is greedy decoding in all but name, and logits divided by it leave float32.
_GREEDY_BELOW = 1e-5


def sampling_params(
    fields: SamplingFields,
    *,
    limits: Limits,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The parameters of one answer. Raises BadParameter for what does not fit the model or itself."""
    if max_tokens is not None and (fields.min_tokens or 0) > max_tokens:
        raise BadParameter("min_tokens must not exceed max_tokens.", "min_tokens", "invalid_value")
    bias = {int(token): value for token, value in (fields.logit_bias or {}).items()}
    _check_tokens(bias, limits.vocab_size, "logit_bias")
    _check_tokens(fields.stop_token_ids or (), limits.vocab_size, "stop_token_ids")
    temperature = _or(fields.temperature, 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_p=_or(fields.top_p, 1.0),
        top_k=max(fields.top_k or 0, 0),
        min_p=fields.min_p or 0.0,
        repetition_penalty=_or(fields.repetition_penalty, 1.0),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        seed=None if fields.seed is None else fields.seed % 2**64,
        min_tokens=fields.min_tokens or 0,
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ()),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        include_stop_str_in_output=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=bias,
    )


def _check_tokens(ids: Iterable[int], vocab_size: int, param: str) -> None:
    largest = max(ids, default=0)
    if largest >= vocab_size:
        message = f"{param} has token id {largest}, but the model's vocabulary has {vocab_size} tokens."
        raise BadParameter(message, param, "invalid_value")


def choice_seed(seed: int | None, choice: int) -> int | None:
    """The seed of the `choice`-th answer to one prompt, 64 bits; the first one is as if it were alone."""
    if seed is None or choice == 0:
        return seed
    digest = hashlib.sha256(seed.to_bytes(8, "little") + choice.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:8], "little")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
