"""The way in: a request begins within its key's limits, and gives back at its end what it left."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from batchyard.errors import InvalidRequest, Overloaded, SchedulerLost
from gateway.errors import RateLimited
from gateway.keys.records import Tenant
from gateway.limits.ledger import Ask, Change, Quota, Standing
from gateway.limits.limiter import Limiter
from gateway.metrics import Metrics
from gateway.observation import Observation
from gateway.streaming import Indexed
from gateway.types import GenerationRequest

_REFUSED = (InvalidRequest, Overloaded, SchedulerLost)  # before the first piece: it never ran

_COUNTED = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "running": "concurrent requests",
}


class Door:
    """Lets requests in."""

    def __init__(self, limiter: Limiter, metrics: Metrics) -> None:
        self._limiter = limiter
        self._metrics = metrics

    async def through(
        self,
        pieces: AsyncGenerator[Indexed],
        requests: Sequence[GenerationRequest],
        tenant: Tenant,
        observation: Observation,
    ) -> AsyncGenerator[Indexed]:
        """The same pieces, of answers to `requests`, once the key's limits allow it. Raises RateLimited.

        A prompt with several answers counts once, and as used when the first piece comes.
        """
        quota = quota_of(tenant)
        if not quota.bounds:
            observation.generating()
            async with aclosing(pieces):
                async for indexed in pieces:
                    yield indexed
            return
        stay = _Stay(self._limiter, tenant.name, requests, observation.usage.prompt_tokens)
        with observation.limiting() as told:
            standing = await self._limiter.ask(tenant.name, quota, stay.ask)
            told["batchyard.limits.outcome"] = standing.cause or "granted"
        observation.answer_headers.update(rate_limit_headers(quota, standing))
        if not standing.granted:
            name = self._metrics.tenants.label(tenant.name)
            self._metrics.rate_limited.labels(name, standing.cause).inc()
            raise _refusal(tenant.name, quota, standing, stay.ask)
        observation.generating()
        try:
            async with aclosing(pieces):
                async for index, piece in pieces:
                    stay.piece(index, len(piece.token_ids), ended=piece.finish_reason is not None)
                    yield index, piece
        except _REFUSED:
            stay.refused()
            raise
        finally:
            stay.end()


class _Stay:
    """What a request holds, from its begin to its end."""

    def __init__(
        self, limiter: Limiter, name: str, requests: Sequence[GenerationRequest], prompt_tokens: int
    ) -> None:
        self._limiter = limiter
        self._name = name
        self._prompt = prompt_tokens  # held
        self._answers = {index: request.params.max_tokens or 0 for index, request in enumerate(requests)}
        self.ask = Ask(prompt_tokens + sum(self._answers.values()), len(requests))

    def piece(self, index: int, tokens: int, *, ended: bool) -> None:
        """A piece of the answer with this index has come, the last one or not."""
        used, self._prompt = self._prompt + tokens, 0
        self._answers[index] -= tokens
        # At its end, an answer gives back the tokens that it could have had, and its place.
        rest = self._answers.pop(index) if ended else 0
        self._limiter.tell(self._name, Change(used=used, held=-used - rest, running=-1 if ended else 0))

    def refused(self) -> None:
        """Where nothing has come before, nothing has been computed."""
        if self._prompt:
            self._limiter.tell(self._name, Change(held=-self._prompt))
            self._prompt = 0

    def end(self) -> None:
        """Gives back what is left. A prompt whose answer nobody waited for has been read nevertheless."""
        if self._answers:
            rest = sum(self._answers.values())
            change = Change(used=self._prompt, held=-self._prompt - rest, running=-len(self._answers))
            self._limiter.tell(self._name, change)


def quota_of(tenant: Tenant) -> Quota:
    """The limits of `tenant` that are counted."""
    return Quota(tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent_requests)


def rate_limit_headers(quota: Quota, standing: Standing) -> dict[str, str]:
    """How the key stands, as OpenAI says it: https://platform.openai.com/docs/guides/rate-limits"""
    headers = {}
    share = quota.share(standing.parts)
    for what, limit, here, counted, reset_ms in (
        ("requests", quota.requests, share.requests, standing.requests, standing.reset_requests_ms),
        ("tokens", quota.tokens, share.tokens, standing.tokens, standing.reset_tokens_ms),
    ):
        if limit is not None and here is not None:
            headers[f"x-ratelimit-limit-{what}"] = str(limit)
            headers[f"x-ratelimit-remaining-{what}"] = str(max(0, here - counted))
            headers[f"x-ratelimit-reset-{what}"] = duration(reset_ms)
    return headers


def duration(ms: int) -> str:
    """`1m5s`, `3s` or `120ms`, rounded up to what is shown."""
    if ms < 1000:
        return f"{ms}ms"
    minutes, seconds = divmod(-(-ms // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _refusal(name: str, quota: Quota, standing: Standing, ask: Ask) -> RateLimited:
    share = quota.share(standing.parts)
    limit, here, used, wanted = {
        "requests": (quota.requests, share.requests, standing.requests, 1),
        "tokens": (quota.tokens, share.tokens, standing.tokens, ask.tokens),
    }.get(standing.cause, (quota.running, share.running, standing.running, ask.running))
    part = f" (of {limit}, which gateways share equally for now)" if here != limit else ""
    return RateLimited(
        f"Rate limit reached for key {name!r} on {_COUNTED[standing.cause]}: Limit {here}{part}, "
        f"Used {used}, Requested {wanted}. Please try again in {duration(standing.retry_ms)}.",
        standing.retry_ms / 1000,
        "tokens" if standing.cause == "tokens" else "requests",
    )
