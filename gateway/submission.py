"""From what the API asks for to what the scheduler is told."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import BadParameter
from gateway.types import GenerationRequest, SamplingParams
from protos.packing import pack_f32, pack_i32
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import Submit


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds every request to a model."""

    max_model_len: int  # tokens of prompt and answer together
    vocab_size: int  # token ids are smaller


def build_submit(request: GenerationRequest, limits: Limits, eos_ids: frozenset[int]) -> Submit:
    """The scheduler's form of `request`, still without an id. Raises what `check_prompt` does."""
    params = request.params
    check_prompt(request.prompt_ids, params.max_tokens, limits)
    stop_ids = set(params.stop_token_ids)
    if not params.ignore_eos:
        # An id past the model's vocabulary is never sampled, and min_tokens could not mask it.
        stop_ids |= {token_id for token_id in eos_ids if token_id < limits.vocab_size}
    room = limits.max_model_len - len(request.prompt_ids)
    return Submit(
        request_id=request.request_id,
        tokens=pack_i32(request.prompt_ids),
        prompt_len=len(request.prompt_ids),
        max_tokens=room if params.max_tokens is None else params.max_tokens,
        sampling=_sampling(params, sorted(stop_ids)),
        traceparent=request.traceparent,
        cache_salt=tenant_salt(request),
        tenant=request.terms.tenant.name,
        weight=request.terms.tenant.weight,
        priority=request.terms.priority,
        timeout_ms=_left_ms(request.terms.deadline),
    )


def tenant_salt(request: GenerationRequest) -> str:
    """Whom `request` shares cached blocks with: those of the same salt. Tenants mean nothing there.

    The only place that decides it: the salt of the API key stands in front of the request's own and with its
    length, so that no request can spell another tenant's.
    """
    keys, own = request.terms.tenant.cache_salt, request.terms.cache_salt
    return f"{len(keys)}:{keys}{own}" if keys or own else ""


def check_prompt(prompt_ids: Sequence[int], max_tokens: int | None, limits: Limits) -> None:
    """Raises BadParameter for a prompt that is empty, has ids of no token, or leaves too little room.

    Without `max_tokens` the answer needs room for one token.
    """
    if not prompt_ids:
        raise BadParameter("The prompt is empty: it must have at least one token.", "prompt", "invalid_value")
    for token_id in (min(prompt_ids), max(prompt_ids)):
        if not 0 <= token_id < limits.vocab_size:
            bound = f"the model's vocabulary has {limits.vocab_size} tokens"
            raise BadParameter(f"The prompt has token id {token_id}, but {bound}.", "prompt", "invalid_value")
    completion = 1 if max_tokens is None else max_tokens
    total = len(prompt_ids) + completion
    if total > limits.max_model_len:
        least = "at least " if max_tokens is None else ""
        raise BadParameter(
            f"This model's maximum context length is {limits.max_model_len} tokens. However, you requested "
            f"{least}{total} tokens ({len(prompt_ids)} in the prompt, {least}{completion} for the "
            "completion). Please reduce the length of the prompt or of the completion.",
            code="context_length_exceeded",  # OpenAI's, by which clients know to shorten a conversation
        )


def _left_ms(deadline: float | None) -> int:
    """What the scheduler is given; 0 is no limit, so what is late already gets a millisecond."""
    if deadline is None:
        return 0
    return min(max(1, round((deadline - time.perf_counter()) * 1e3)), 2**32 - 1)


def _sampling(params: SamplingParams, stop_ids: Sequence[int]) -> Sampling:
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=secrets.randbits(64) if params.seed is None else params.seed,
        min_tokens=params.min_tokens,
        stop_token_ids=pack_i32(stop_ids),
        bias_ids=pack_i32(list(params.logit_bias)),
        bias_values=pack_f32(list(params.logit_bias.values())),
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )
