"""What a console is told, as JSON: everything to an operator, to any other key what is its own.

Times are in milliseconds, sizes of the KV cache in blocks. docs/console.md describes every field.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from gateway.console.journal import Journal, Remembered, RequestRecord
from gateway.console.latencies import Counts, percentiles
from gateway.console.peers import Peers
from gateway.keys.records import Tenant
from gateway.readiness import STALLED_S, Look, Watch
from protos.scheduling_pb2 import Description, TenantState, WorkerState

_VERSION = version("batchyard")
TENANTS_ASKED = 1000  # of the scheduler, so that a key finds itself among them
_TENANTS_SHOWN = 50

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Console:
    """Where the state comes from."""

    model: str
    watch: Watch
    peers: Peers
    gateways: int = 1  # as configured; those of which nothing is heard are at least known of
    trace_url: str | None = None  # with `{trace_id}` where a trace's id goes

    @property
    def journal(self) -> Journal:
        """To be told what becomes of requests."""
        return self.peers.journal

    async def state(self, tenant: Tenant) -> Json:
        """What the holder of a key may see now. Asks no scheduler."""
        remembered, heard = await self.peers.remembered()
        look = self.watch.last
        whose = None if tenant.operator else tenant.name
        state: Json = {
            "version": _VERSION,
            "model": self.model,
            "key": whose,
            "time": round(time.time() * 1e3),
            "ready": look.reason is None,
            "reason": look.reason if tenant.operator or look.reason is None else "The server is not ready.",
            "age": round((time.monotonic() - look.at) * 1e3),
            "gateways": {"heard": heard, "of": max(heard, self.gateways)},
            "latency": {
                "ttft": _percentiles(remembered.ttft, whose),
                "itl": _percentiles(remembered.itl, whose),
            },
            "requests": self._requests(remembered, whose),
        }
        return state | (self._of_all(look) if whose is None else _of_one(look, whose))

    def _of_all(self, look: Look) -> Json:
        description = look.description or Description()
        history = self.watch.history
        return {
            "totals": {
                "tokens_per_second": round(sum(w.tokens_per_second for w in description.workers), 1),
                "running": description.running,
                "waiting": description.waiting,
                "queue_tokens": description.queue_tokens,
            },
            "workers": [_worker(worker) for worker in description.workers],
            "tenants": [_tenant(each) for each in description.tenants[:_TENANTS_SHOWN]],
            "num_tenants": description.num_tenants,
            "history": {
                name: [sample and getattr(sample, name) for sample in history]
                for name in ("tokens_per_second", "running", "waiting")
            },
        }

    def _requests(self, remembered: Remembered, whose: str | None) -> Sequence[Json]:
        return [
            self._request(record) for record in remembered.requests if whose is None or record.tenant == whose
        ]

    def _request(self, record: RequestRecord) -> Json:
        told = record.model_dump()
        told["trace_url"] = None
        if self.trace_url and record.trace_id:
            told["trace_url"] = self.trace_url.replace("{trace_id}", record.trace_id)
        return told


def _of_one(look: Look, name: str) -> Json:
    tenants = look.description.tenants if look.description else ()
    mine = next((each for each in tenants if each.name == name), TenantState())
    return {"totals": {"running": mine.running, "waiting": mine.waiting}}


def _percentiles(counts: Counts, whose: str | None) -> Json:
    told = asdict(percentiles(counts, whose))
    return {name: value and round(value, 1) for name, value in told.items()}


def _worker(worker: WorkerState) -> Json:
    step = worker.last_step
    return {
        "id": worker.worker_id or worker.address,
        "address": worker.address,
        "device": worker.device,
        "state": _condition(worker),
        "weight": worker.weight,
        "rows": worker.rows,
        "max_rows": worker.max_rows,
        "blocks": {
            "total": worker.num_blocks,
            "held": worker.held_blocks,
            "cached": worker.cached_blocks,
            "free": worker.free_blocks,
        },
        "tokens_per_second": round(worker.tokens_per_second, 1),
        "steps": worker.steps,
        "step": {
            "rows": step.rows,
            "tokens": step.tokens,
            "prompt_tokens": step.prompt_tokens,
            "duration": round(step.busy_us / 1e3, 2),
            "ago": round(worker.seconds_since_step * 1e3),
        }
        if worker.HasField("last_step")
        else None,
    }


def _condition(worker: WorkerState) -> str:
    if worker.draining:
        return "draining"
    if not worker.connected:
        return "away"
    stalled = worker.steps_in_flight and worker.seconds_since_step > STALLED_S
    return "stalled" if stalled else "busy" if worker.rows else "idle"


def _tenant(tenant: TenantState) -> Json:
    return {
        "name": tenant.name,
        "weight": tenant.weight,
        "waiting": tenant.waiting,
        "running": tenant.running,
    }
