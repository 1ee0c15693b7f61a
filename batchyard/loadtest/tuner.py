"""Measures settings of `batchyard serve`, each a service of its own, and writes down what came of them."""

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from batchyard.config import ServeSettings
from batchyard.errors import BadTarget, ConfigError
from batchyard.loadtest import measuring
from batchyard.loadtest.options import Options
from batchyard.loadtest.search import Setting, Space, Trial, climb, grid
from batchyard.loadtest.serving import serving
from batchyard.loadtest.sweep import keeps
from batchyard.loadtest.trial_table import describe
from batchyard.loadtest.usage import watched

_READY_S = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A tuning. `settings` are those of the service, `flags` the same as its command line has them."""

    options: Options
    settings: ServeSettings
    flags: tuple[str, ...]
    space: Space
    search: str
    seconds: float
    state: Path

    @property
    def fingerprint(self) -> str:
        """Of all that a measurement depends on but the setting itself."""
        asked = {name: value for name, value in self.options.asked.items() if name not in _OF_TUNE}
        text = json.dumps([asked, self.flags], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_OF_TUNE = ("minutes", "state", "search", "max_num_batched_tokens", "max_num_seqs", "serve")


class Notebook:
    """What was measured, as lines of JSON; those of other loads are left alone."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self.trials: dict[Setting, Trial] = {}
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            for line in map(json.loads, lines):
                if line["load"] == fingerprint:
                    trial = Trial.from_json(line["trial"])
                    self.trials[trial.setting] = trial
        except OSError as error:
            raise ConfigError(f"--state {path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"--state {path}: this is not a state of `batchyard bench tune`") from error

    def add(self, trial: Trial) -> None:
        """Writes it down."""
        self.trials[trial.setting] = trial
        line = json.dumps({"load": self._fingerprint, "trial": trial.to_json()})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                print(line, file=file)
        except OSError as error:
            raise ConfigError(f"--state {self._path}: {error.strerror}") from error


class Tuner:
    """Measures settings until the time is over or `stop` is set."""

    def __init__(self, plan: Plan, notebook: Notebook, stop: asyncio.Event) -> None:
        self._plan, self._notebook, self._stop = plan, notebook, stop
        self._deadline = time.monotonic() + plan.seconds
        self._objectives = plan.options.objectives

    async def run(self) -> None:
        """The whole search."""
        plan = self._plan
        timer = asyncio.get_running_loop().call_later(plan.seconds, self._stop.set)
        try:
            if plan.search == "grid":
                await grid(plan.space, self.attempt)
            else:
                await climb(plan.space, _start(plan.space, plan.settings), self.attempt)
        finally:
            timer.cancel()

    async def attempt(self, setting: Setting) -> Trial | None:
        """Measures a setting that has not been; None when there is no time left, or it was cut short."""
        if known := self._notebook.trials.get(setting):
            return known
        if self._stop.is_set():
            return None
        measuring_it = asyncio.create_task(self._measure(setting))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((measuring_it, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._stop.is_set():
            measuring_it.cancel()  # which ends the service
            await asyncio.wait((measuring_it,))
            return None
        stopping.cancel()
        try:
            trial = measuring_it.result()
        except BadTarget as error:
            trial = Trial(setting, keeps=False, error=str(error))
        self._notebook.add(trial)
        print(describe(trial, self._objectives), flush=True)
        return trial

    async def _measure(self, setting: Setting) -> Trial:
        plan = self._plan
        left = max(1.0, self._deadline - time.monotonic())
        flags = [*plan.flags, *setting.flags]
        async with serving(flags, plan.settings.workers, min(left, _READY_S)) as served:
            target = replace(plan.options.target, url=served.url)
            async with watched(served) as usage:
                options = replace(plan.options, target=target)
                result = await measuring.run(options, self._stop, printed=False)
        (run,) = result.runs
        summary = run.summary
        lost = summary.failed + summary.refused + summary.short
        return Trial(
            setting,
            summary.req_per_s,
            summary.output_tok_per_s,
            summary.ttft_ms.p99 if summary.ttft_ms else None,
            summary.itl_ms.p99 if summary.itl_ms else None,
            summary.good,
            keeps(run) if plan.options.objectives else not lost,
            lost,
            usage,
        )


def _start(space: Space, settings: ServeSettings) -> Setting:
    """Where the climb begins: what the service has by itself, or what is nearest to it."""
    wanted = (settings.max_num_batched_tokens, settings.max_num_seqs)

    def distance(setting: Setting) -> float:
        return abs(setting.max_num_batched_tokens - wanted[0]) / wanted[0] + (
            abs(setting.max_num_seqs - wanted[1]) / wanted[1]
        )

    return min(space.everything(), key=distance)
