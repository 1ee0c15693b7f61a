"""From a request that was understood to what is asked of the generator, on the terms of its key."""

from collections.abc import Sequence

from gateway.fan_out import fan_out
from gateway.keys.records import Tenant
from gateway.observation import Observation
from gateway.schema.common import AnyRequestFields
from gateway.shaping import Shape, answer_limits, priority_of, timeout_of
from gateway.submission import Limits
from gateway.types import GenerationRequest, SamplingParams, Terms


def terms_of(
    fields: AnyRequestFields, tenant: Tenant, observation: Observation, cache_salt: str | None = None
) -> Terms:
    """Raises BadParameter for terms that the key does not have."""
    timeout = timeout_of(fields.timeout, tenant)
    return Terms(
        tenant=tenant,
        priority=priority_of(fields.priority, tenant),
        deadline=None if timeout is None else observation.started + timeout,
        cache_salt=cache_salt or "",
    )


def requests_for(
    prompts: Sequence[tuple[int, ...]],
    n: int,
    params: SamplingParams,
    terms: Terms,
    observation: Observation,
    *,
    shape: Shape,
    limits: Limits,
) -> list[GenerationRequest]:
    """One request for each of `n` answers to each prompt, bounded. Raises BadParameter."""
    tenant = terms.tenant
    max_tokens = answer_limits(prompts, n, params.max_tokens, tenant=tenant, shape=shape, limits=limits)
    observation.allowed(n, max_tokens)
    return fan_out(prompts, n, params, max_tokens, terms, observation)
