"""The service with one technique switched off: `python -m bench.without "split-KV" -- --model demo`.

What has a flag is switched off by it. For the rest every process that `batchyard serve` starts finds
`bench/patched/sitecustomize.py` first, which patches modules as they are loaded; the product knows nothing
of it. Each patched module is named on standard error, for Python goes on when a sitecustomize fails.
"""

import argparse
import os
import sys
from pathlib import Path

from bench.patching import patched_line
from bench.service import environment
from bench.techniques import TECHNIQUES

_PATCHED = Path(__file__).resolve().parent / "patched"


def switched_off(technique: str) -> tuple[list[str], dict[str, str]]:
    """Flags for `batchyard serve`, and what to add to its environment. Raises KeyError for an unknown one."""
    off = TECHNIQUES[technique]
    if not off.patches:
        return list(off.flags), {}
    paths = [str(_PATCHED), *filter(None, [os.environ.get("PYTHONPATH")])]
    return list(off.flags), {"BENCH_WITHOUT": technique, "PYTHONPATH": os.pathsep.join(paths)}


def not_patched(technique: str, printed: str) -> list[str]:
    """The modules that should have been patched by now, but for which `printed` does not say so."""
    return [name for name in TECHNIQUES[technique].patches if patched_line(name) not in printed]


def main() -> None:
    """Becomes `batchyard serve`."""
    lines = [f"  {name:<22}{technique.off}" for name, technique in TECHNIQUES.items()]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(["techniques, and what runs in their place:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("technique", choices=TECHNIQUES, metavar="TECHNIQUE")
    parser.add_argument("serve", nargs="*", metavar="FLAG", help="after --: for `batchyard serve`")
    arguments = parser.parse_args()
    flags, environ = switched_off(arguments.technique)
    command = [sys.executable, "-P", "-m", "batchyard.cli", "serve", *arguments.serve, *flags]
    os.execve(sys.executable, command, environment(environ))


if __name__ == "__main__":
    main()
