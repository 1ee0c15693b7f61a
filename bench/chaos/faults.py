"""What is done to the cluster. A fault is some harm, a time to wait, and what undoes it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.chaos.cluster import GATEWAYS, SCHEDULERS, WORKERS, Cluster, Layout
from bench.chaos.crowd import Crowd
from bench.chaos.memory import kill_for_memory
from bench.chaos.poison import Poison
from bench.chaos.wire import CALM, CUT, Weather

Act = Callable[[Cluster], Awaitable[None]]

ROOMY = Layout()
TIGHT = Layout(tight=True)
FAR = Layout(far=True)
CROWD = Crowd(choices=64, tokens=200)

_VICTIM = "worker-0"
_RESTARTED_S = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """`harm`, then `hold_s` seconds, then `heal`: what a supervisor, an operator or the network would do."""

    name: str
    harm: Act
    heal: Act
    hold_s: float = 0.0
    layout: Layout = ROOMY
    cuts: str = ""  # the gateway whose clients lose their connections


def worker_faults() -> list[Fault]:
    """One worker, or all, as processes."""
    stop, go_on = _signal(_VICTIM, signal.SIGSTOP), _signal(_VICTIM, signal.SIGCONT)
    return [
        Fault("SIGKILL a worker", _kill(_VICTIM), _start(_VICTIM)),
        Fault("SIGSTOP a worker for 4 s", stop, go_on, hold_s=4),
        Fault("SIGKILL all workers", _kill(*WORKERS), _start(*WORKERS)),
        Fault("SIGTERM all workers, one after another", _restart_each, _nothing),
        Fault("a worker out of memory, killed by the kernel", kill_for_memory(_VICTIM), _start(_VICTIM)),
    ]


def answer_faults() -> list[Fault]:
    """A worker that is not well, but alive."""
    rubbish = {
        "wrong-step": "a worker answers steps that were never sent, for 2 s",
        "wrong-token": "a worker's tokens are not in the vocabulary, for 2 s",
        "wrong-rows": "a worker answers for the wrong rows, for 2 s",
        "nan": "a worker's logits are no numbers, for 2 s",
    }
    return [
        Fault("a worker is 10 times slower for 4 s", _order("slow"), _order(""), hold_s=4),
        Fault("a worker's device is out of memory, for 2 s", _order("no-memory"), _well_again, hold_s=2),
        *(Fault(name, _order(order), _order(""), hold_s=2) for order, name in rubbish.items()),
        Fault("a request that kills its workers", Poison().swallow, _nothing),
    ]


def gateway_faults() -> list[Fault]:
    """A gateway dies with its clients' connections."""
    victim = GATEWAYS[1]
    return [Fault("SIGKILL a gateway", _kill(victim), _start(victim), cuts=victim)]


def scheduler_faults() -> list[Fault]:
    """The active one dies or hangs, with a standby and without."""
    victim: list[str] = []

    async def find(cluster: Cluster) -> None:
        name, _ = await cluster.describe()
        victim[:] = [name]

    async def kill_active(cluster: Cluster) -> None:
        await find(cluster)
        cluster.kill(victim[0])

    async def start_again(cluster: Cluster) -> None:
        cluster.start(victim[0])

    async def stop_active(cluster: Cluster) -> None:
        await find(cluster)
        cluster.signal(victim[0], signal.SIGSTOP)

    async def go_on(cluster: Cluster) -> None:
        cluster.signal(victim[0], signal.SIGCONT)

    return [
        Fault("SIGKILL the scheduler, which has a standby", kill_active, start_again),
        Fault("SIGKILL the scheduler and its standby", _kill(*SCHEDULERS), _start(*SCHEDULERS)),
        Fault("SIGSTOP the scheduler for 4 s, past its lease", stop_active, go_on, hold_s=4),
    ]


def redis_faults() -> list[Fault]:
    """Redis is away, or slow."""

    async def slow(cluster: Cluster) -> None:
        cluster.redis.delay.seconds = 0.25

    async def fast(cluster: Cluster) -> None:
        cluster.redis.delay.seconds = 0

    return [
        Fault("SIGKILL Redis, back empty after 2 s", _kill("redis"), _start("redis"), hold_s=2),
        Fault("Redis takes 500 ms, for 4 s", slow, fast, hold_s=4),
    ]


def network_faults() -> list[Fault]:
    """Between the scheduler and one worker."""
    calm = _weather(CALM)
    return [
        Fault("a worker's network is cut for 4 s", _weather(CUT), calm, 4, FAR),
        Fault("a worker's network loses 30% for 4 s", _weather(Weather(loss=0.3)), calm, 4, FAR),
        Fault("a worker is 200 ms away for 4 s", _weather(Weather(delay_s=0.1)), calm, 4, FAR),
    ]


def memory_faults(crowd: Crowd) -> list[Fault]:
    """Where blocks are few."""
    return [
        Fault("swaps of KV blocks stall for 4 s", _order("stall"), _order(""), 4, TIGHT),
        Fault(f"n={crowd.choices}, more than memory holds", crowd.arrive, crowd.leave, 0, TIGHT),
    ]


def all_faults(crowd: Crowd = CROWD) -> list[Fault]:
    """Every one; those of a layout stand together."""
    workers = [*worker_faults(), *answer_faults()]
    others = [*scheduler_faults(), *gateway_faults(), *redis_faults()]
    return [*workers, *others, *memory_faults(crowd), *network_faults()]


def _kill(*names: str) -> Act:
    async def kill(cluster: Cluster) -> None:
        for name in names:
            cluster.kill(name)

    return kill


def _start(*names: str) -> Act:
    async def start(cluster: Cluster) -> None:
        for name in names:
            cluster.start(name)

    return start


async def _restart_each(cluster: Cluster) -> None:
    """The next one when the one before takes steps again."""
    for name in WORKERS:
        cluster.signal(name, signal.SIGTERM)
        await asyncio.to_thread(cluster.forget, name)
        cluster.start(name)
        await cluster.full(_RESTARTED_S)


async def _nothing(cluster: Cluster) -> None:
    pass


def _signal(name: str, number: signal.Signals) -> Act:
    async def send(cluster: Cluster) -> None:
        cluster.signal(name, number)

    return send


def _order(order: str) -> Act:
    async def give(cluster: Cluster) -> None:
        cluster.orders[_VICTIM].give(order)

    return give


async def _well_again(cluster: Cluster) -> None:
    """Orders are over; a worker that they have ended is started again."""
    cluster.orders[_VICTIM].give("")
    if cluster.processes[_VICTIM].poll() is not None:
        cluster.forget(_VICTIM)
        cluster.start(_VICTIM)


def _weather(weather: Weather) -> Act:
    async def set_weather(cluster: Cluster) -> None:
        if cluster.wire is None:
            raise AssertionError("a cluster without a wire")
        cluster.wire.weather = weather

    return set_weather
