"""Python runs this at its start where this folder is in PYTHONPATH: see `bench.without`."""

import os

from bench.patching import install
from bench.techniques import TECHNIQUES

install(TECHNIQUES[os.environ["BENCH_WITHOUT"]].patches)
