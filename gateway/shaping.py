"""What a request may ask for: how long its prompt and its answers, how urgent, how much time.

What a request asks for in so many words is given or refused by name; only what it leaves open is chosen here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import BadParameter
from gateway.keys.records import Tenant
from gateway.submission import Limits, check_prompt


@dataclass(frozen=True, slots=True)
class Shape:
    """The bounds that this server sets for everybody, in tokens; None is none."""

    default_max_tokens: int | None = None  # of an answer, where the request does not say
    max_tokens: int | None = None  # of an answer
    max_prompt_tokens: int | None = None


UNBOUNDED = Shape()

_AT_ONCE = 8  # answers of unknown length that a key's tokens per minute are divided among
_LEAST_DEFAULT = 1024  # tokens: few chats have longer answers


def answer_limits(
    prompts: Sequence[tuple[int, ...]],
    n: int,
    asked: int | None,
    *,
    tenant: Tenant,
    shape: Shape,
    limits: Limits,
) -> list[int]:
    """Tokens that an answer may have, for each prompt; it has `n` of them. `asked` is what the request says.

    Raises BadParameter for what can never be served: a prompt or an answer that is too long for the model,
    for this server or for the key, or more tokens than the key may use in a minute.
    """
    for prompt in prompts:
        check_prompt(prompt, asked, limits)
        _check_length(prompt, shape)
    _check_asked(asked, tenant, shape)
    answers = len(prompts) * n
    prompt_tokens = sum(map(len, prompts))
    per_minute = tenant.tokens_per_minute
    if asked is not None:
        given = [asked] * len(prompts)
    else:
        fits = None if per_minute is None else max(1, (per_minute - prompt_tokens) // answers)
        bounds = [_default(tenant, shape), shape.max_tokens, tenant.max_tokens, fits]
        least = min((bound for bound in bounds if bound is not None), default=limits.max_model_len)
        given = [min(least, limits.max_model_len - len(prompt)) for prompt in prompts]
    _check_fits(prompt_tokens, n * sum(given), answers, tenant)
    return given


def _default(tenant: Tenant, shape: Shape) -> int | None:
    """Tokens of an answer whose request does not say.

    They are held until its end: were they all that a key has in a minute, it could have one chat at a time.
    """
    if shape.default_max_tokens is not None or tenant.tokens_per_minute is None:
        return shape.default_max_tokens
    return max(_LEAST_DEFAULT, tenant.tokens_per_minute // _AT_ONCE)


def priority_of(asked: int | None, tenant: Tenant) -> int:
    """The request's priority: lower is more urgent. Raises BadParameter outside the key's range."""
    if asked is None:
        return tenant.default_priority
    if not tenant.min_priority <= asked <= tenant.max_priority:
        allowed = f"from {tenant.min_priority} to {tenant.max_priority}"
        message = f"priority must be {allowed} for this API key, got {asked}."
        raise BadParameter(message, "priority", "invalid_value")
    return asked


def timeout_of(asked: float | None, tenant: Tenant) -> float | None:
    """Seconds for the whole request; None for any time. Raises BadParameter over the key's maximum."""
    most = tenant.max_timeout
    if asked is None:
        given = [seconds for seconds in (tenant.default_timeout, most) if seconds is not None]
        return min(given, default=None)
    if most is not None and asked > most:
        message = f"timeout must be at most {most:g} seconds for this API key, got {asked:g}."
        raise BadParameter(message, "timeout", "invalid_value")
    return asked


def _check_length(prompt: Sequence[int], shape: Shape) -> None:
    if shape.max_prompt_tokens is not None and len(prompt) > shape.max_prompt_tokens:
        message = f"The prompt has {len(prompt)} tokens; this server takes {shape.max_prompt_tokens}."
        raise BadParameter(message, "prompt", "context_length_exceeded")


def _check_asked(asked: int | None, tenant: Tenant, shape: Shape) -> None:
    for most, whose in ((shape.max_tokens, "this server"), (tenant.max_tokens, "this API key")):
        if most is not None and (asked or 0) > most:
            message = f"max_tokens is too large: {asked}. With {whose}, an answer has {most} tokens at most."
            raise BadParameter(message, "max_tokens", "invalid_value")


def _check_fits(prompt_tokens: int, answer_tokens: int, answers: int, tenant: Tenant) -> None:
    """Refuses at once what would be told for ever to try again later."""
    total, most = prompt_tokens + answer_tokens, tenant.tokens_per_minute
    if most is not None and total > most:
        raise BadParameter(
            f"This request can never run: it may need {total} tokens ({prompt_tokens} in the prompt, up to "
            f"{answer_tokens} for the completion), and the limit of this API key is {most} tokens "
            "per minute. Reduce the length of the prompt or max_tokens.",
            "max_tokens",
            "tokens_exceed_limit",
        )
    if tenant.concurrent_requests is not None and answers > tenant.concurrent_requests:
        raise BadParameter(
            f"This request can never run: it asks for {answers} answers at once, and this API key may have "
            f"{tenant.concurrent_requests}.",
            "n",
            "answers_exceed_limit",
        )
