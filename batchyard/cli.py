"""The `batchyard` command: loads a process's settings and runs it, importing no more than that needs."""

import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, NoReturn

from batchyard.config import GatewaySettings, SchedulerSettings, ServeSettings, Settings, WorkerSettings
from batchyard.errors import ConfigError, UserError

Run = Callable[[Any], Coroutine[Any, Any, int | None]]

USER_ERROR = 2
CRASH = 1
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A sub-command: `module` has `run(settings)`, a coroutine that may return the exit code."""

    module: str
    settings: type[Settings]

    def run(self, settings: Settings) -> Coroutine[Any, Any, int | None]:
        """Imports the module, and starts its `run`."""
        run: Run = import_module(self.module).run
        return run(settings)


COMMANDS = {
    "serve": Command("batchyard.supervisor", ServeSettings),
    "gateway": Command("gateway.main", GatewaySettings),
    "scheduler": Command("scheduler.main", SchedulerSettings),
    "worker": Command("gpu_worker.main", WorkerSettings),
}

# Not processes: they have actions and names where the others have settings. Module of `main(argv)`, and help.
TOOLS = {
    "keys": ("gateway.keys.command", "API keys: add, list, revoke (see batchyard keys --help)."),
    "top": ("batchyard.top.command", "What it does now, in this terminal (see batchyard top --help)."),
    "bench": (
        "batchyard.loadtest.main",
        "Load a server, ours or another, and measure it (see batchyard bench --help).",
    ),
    "why": ("batchyard.why", "Where a request was slow, told from its trace (see batchyard why --help)."),
    "drain": ("batchyard.drain", "Let a worker go, its requests elsewhere (see batchyard drain --help)."),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command in `argv` and ends the process: 0 done, 1 crashed, 2 the user's error, 130 Ctrl-C."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"batchyard: {error}", file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def _run(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"batchyard {metadata.version('batchyard')}")
        return 0
    if name in TOOLS:
        import_module(TOOLS[name][0]).main(rest)
        return 0
    if name not in COMMANDS:
        from batchyard.flags import hint

        raise ConfigError(
            f"{name!r} is not a command{hint(name, [*COMMANDS, *TOOLS])} (see batchyard --help)"
        )
    return _run_command(name, rest)


def _run_command(name: str, argv: list[str]) -> int:
    import os

    from batchyard.settings import load

    settings = load(COMMANDS[name].settings, argv, os.environ)

    import structlog
    import uvloop

    from batchyard.logging import setup_logging

    process = settings.name if type(settings) is WorkerSettings else name
    setup_logging(process, settings.log_level, settings.log_format)
    try:
        return uvloop.run(COMMANDS[name].run(settings)) or 0
    except Exception as error:
        if user_error := _user_error(error):
            raise user_error from error
        structlog.get_logger().exception("crashed", command=name)
        return CRASH


def _user_error(error: BaseException) -> UserError | None:
    """The user's error that `error` is, or that a task group wrapped."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return _user_error(error.exceptions[0])
    return error if isinstance(error, UserError) else None


def _help() -> str:
    lines = [f"  {name:<10} {command.settings.__doc__}" for name, command in COMMANDS.items()]
    lines += [f"  {name:<10} {text}" for name, (_, text) in TOOLS.items()]
    return "\n".join(
        [
            "usage: batchyard COMMAND [--setting value ...]",
            "",
            *lines,
            "",
            "`batchyard COMMAND --help` lists its settings; `batchyard --version` prints the version.",
        ]
    )


if __name__ == "__main__":
    main()
