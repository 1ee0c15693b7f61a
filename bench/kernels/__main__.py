"""Each Triton kernel on this GPU, held against what the GPU can do and against PyTorch's own ways.

`python -m bench.kernels` prints Markdown. Times are those of CUDA graphs in which an operation runs over
buffers of its own, one after another, so that weights, keys and values come from memory as in a model. `of
limit` is the share of what was measured in the same run: reading a large buffer, or a large product in
bfloat16 by cuBLAS. The columns behind it are others' rates at the same work, and the speedup is ours over the
fastest of them.
"""

import argparse
import sys
import time

import torch
import triton

from bench.kernels import attention, layers
from bench.kernels.cases import Bench, Sweep
from bench.kernels.tables import table
from bench.kernels.timing import GraphTimer, measure_limits
from gpu_worker.kernels.device_traits import DeviceTraits

TOPICS = attention.TOPICS | layers.TOPICS


def _topics(text: str) -> list[str]:
    """The value of --only."""
    names = text.split(",")
    if unknown := [name for name in names if name not in TOPICS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(TOPICS)}")
    return names


def _repeats(text: str) -> int:
    """The value of --repeats."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line: `only`, names of TOPICS, and `repeats`. Exits if it is wrong."""
    parser = argparse.ArgumentParser("python -m bench.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only",
        type=_topics,
        default=list(TOPICS),
        metavar="NAME,...",
        help=f"tables to print, of {', '.join(TOPICS)} (default: all)",
    )
    parser.add_argument(
        "--repeats", type=_repeats, default=3, help="the best of so many is shown (default: 3)"
    )
    return parser.parse_args(arguments)


def run(names: list[str], repeats: int) -> None:
    """Measures and prints."""
    started = time.perf_counter()
    device = torch.device("cuda")
    traits = DeviceTraits.of(device)
    timer = GraphTimer(repeats)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    limits = measure_limits(timer, device)
    print(
        f"limits: {limits.read:.2f} TB/s read, {limits.copy:.2f} TB/s copied, {limits.products:.0f} TFLOP/s"
    )
    for name in names:
        topic = TOPICS[name]
        for model in topic.models:
            print(f"\n{topic.title}, {model.name}\n", flush=True)
            for line in table(topic, Bench(model, device, traits, Sweep()), timer, limits):
                print(line, flush=True)
    most = torch.cuda.max_memory_reserved() / 1e9
    print(f"\n{time.perf_counter() - started:.0f} seconds, {most:.0f} GB at most")


def main() -> int:
    options = parse(sys.argv[1:])
    if not torch.cuda.is_available():
        print("There is no GPU here that PyTorch can use.", file=sys.stderr)
        return 1
    run(options.only, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
