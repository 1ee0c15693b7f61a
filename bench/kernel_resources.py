"""What each kernel takes of a Hopper multiprocessor, no GPU needed: `python -m bench.kernel_resources`.

The shapes are those of an 8-billion-parameter Llama in bfloat16. STACK counts bytes of local memory per
thread: anything but 0 is registers spilled. Exits with 1 if there is any.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpu_worker.kernels.attention_reduce import attention_reduce_kernel
from gpu_worker.kernels.decode_attention import decode_attention_kernel
from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.gather_keys import gather_keys_kernel
from gpu_worker.kernels.launch_shapes import (
    MAX_SEGMENTS,
    SHARED_SEGMENTS,
    SWIGLU_BLOCK,
    chunk_tile,
    decode_tile,
    matmul_tile,
    min_segment_tiles,
    next_power_of_two,
    row_tile,
    shared_tile,
)
from gpu_worker.kernels.matmul import matmul_kernel
from gpu_worker.kernels.prefill_attention import prefill_attention_kernel
from gpu_worker.kernels.rms_norm import rms_norm_kernel
from gpu_worker.kernels.rope_cache import rope_cache_kernel
from gpu_worker.kernels.sample import (
    CHOOSE_FILTERED_WARPS,
    CHOOSE_WARPS,
    SCAN_WARPS,
    WEIGH_WARPS,
    choose_filtered_kernel,
    choose_kernel,
    launch_sizes,
    scan_kernel,
    weigh_kernel,
)
from gpu_worker.kernels.shared_attention import shared_attention_kernel
from gpu_worker.kernels.swiglu import swiglu_kernel

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4096, 14336, 32, 8, 128, 16
VOCAB = 128_256
# Outputs, inputs, with SwiGLU, and onto the residual stream.
PRODUCTS = [
    ("qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, False, False),
    ("gate_up", INTERMEDIATE, HIDDEN, True, False),
    ("down", HIDDEN, INTERMEDIATE, False, True),
]
HOPPER = GPUTarget("cuda", 90, 32)
H200 = DeviceTraits(multiprocessors=132, overlaps=True)
OPTIONS = H200.launch_options
# Arguments that are not pointers to activations or weights, and what they are.
SCALARS = {"first_seq": "i32", "end_seq": "i32", "window": "i32", "scale": "fp32", "eps": "fp32"}
SCALARS |= dict.fromkeys(("num_rows", "num_keys", "first_token", "num_segments", "table_stride"), "i32")
INTEGERS = dict.fromkeys(("block_tables", "query_start", "seq_lens", "positions"), "*i32")
INTEGERS |= dict.fromkeys(("members", "group_tokens", "num_groups", "shared_tokens"), "*i32")
INTEGERS |= dict.fromkeys(("arrivals", "blocks", "key_starts", "counts", "slots"), "*i32")
FLOATS = dict.fromkeys(("cos_sin", "log_sums", "parts", "shared_parts", "shared_log_sums"), "*fp32")
Constants = dict[str, int | bool | None]
TYPES = {**SCALARS, **INTEGERS, **FLOATS}


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel as it is compiled for one use."""

    name: str
    kernel: triton.JITFunction
    constants: Constants
    num_warps: int
    num_stages: int = 3
    types: dict[str, str] = field(default_factory=dict)

    def compile(self) -> triton.compiler.CompiledKernel:
        names = self.kernel.arg_names
        overlap = {"OVERLAP": True} if "OVERLAP" in names else {}
        constants = self.constants | overlap
        strides = {name: "i32" for name in names if name.endswith("_stride")}
        types = strides | TYPES | self.types | dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "*bf16") for name in names}
        # What the launcher finds out about real arguments: strides and addresses are multiples of 16.
        aligned = [i for i, name in enumerate(names) if name in strides or signature[name].startswith("*")]
        aligned = [i for i in aligned if names[i] != "table_stride"]
        source = ASTSource(
            fn=self.kernel,
            signature=signature,
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        options: dict[str, int] = {name: value for name, value in OPTIONS.items() if name != "OVERLAP"}
        options |= {"num_warps": self.num_warps, "num_stages": self.num_stages}
        options["launch_pdl"] = bool(overlap)
        return triton.compile(source, target=HOPPER, options=options)


def norm_variant(name: str, add: bool) -> Variant:
    tile = row_tile(HIDDEN)
    constants: Constants = {"ADD": add, "HIDDEN": HIDDEN}
    constants |= {"BLOCK_ROWS": tile.rows, "BLOCK_HIDDEN": tile.columns}
    return Variant(name, rms_norm_kernel, constants, tile.num_warps)


def decode_variant(name: str, windowed: bool, split: bool) -> Variant:
    tile = decode_tile(HEADS // KV_HEADS, HEAD_DIM, 2)
    constants: Constants = {"KV_HEADS": KV_HEADS, "GROUP": HEADS // KV_HEADS, "HEAD_DIM": HEAD_DIM}
    constants |= {"BLOCK_SIZE": BLOCK_SIZE, "WINDOWED": windowed, "SPLIT": split, "NORM": False}
    constants |= {"SHARED": SHARED_SEGMENTS if split else 0}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d}
    constants |= {"GROUP_ROWS": HEADS // KV_HEADS, "MIN_TILES": min_segment_tiles(tile)}
    return Variant(name, decode_attention_kernel, constants, tile.num_warps, tile.num_stages)


def shared_variant() -> Variant:
    tile = shared_tile(HEADS // KV_HEADS, HEAD_DIM, 2)
    constants: Constants = {"KV_HEADS": KV_HEADS, "GROUP": HEADS // KV_HEADS, "HEAD_DIM": HEAD_DIM}
    constants |= {"BLOCK_SIZE": BLOCK_SIZE, "GROUP_ROWS": HEADS // KV_HEADS, "MEMBERS": tile.block_q}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d}
    constants |= {"MIN_TILES": min_segment_tiles(tile), "PROGRAMS": 2 * H200.multiprocessors, "NORM": False}
    return Variant("shared", shared_attention_kernel, constants, tile.num_warps, tile.num_stages)


def prefill_variant(name: str, windowed: bool, split: bool) -> Variant:
    tile = chunk_tile(HEADS // KV_HEADS, HEAD_DIM, 2, H200.shared_memory)
    constants: Constants = {k: v for k, v in tile.options.items() if k.startswith("BLOCK")}
    constants |= {"KV_HEADS": KV_HEADS, "GROUP": HEADS // KV_HEADS, "HEAD_DIM": HEAD_DIM}
    constants |= {"BLOCK_Q": tile.block_q, "WINDOWED": windowed, "SPLIT": split}
    types = {"out": "*fp32"} if split else {"log_sums": "*bf16"}
    types |= dict.fromkeys(("keys", "values"), f"tensordesc<bf16[{tile.block_n}, {tile.block_d}]>")
    return Variant(name, prefill_attention_kernel, constants, tile.num_warps, tile.num_stages, types)


def matmul_variant(name: str, rows: int, outputs: int, inputs: int, *, gated: bool, add: bool) -> Variant:
    tile = matmul_tile(rows, outputs, inputs, gated=gated, num_multiprocessors=H200.multiprocessors)
    if tile is None:
        raise AssertionError(f"{name} is no product of few rows")
    constants: Constants = {k: v for k, v in tile.options.items() if not k.startswith("num_")}
    constants |= {"N": outputs, "K": inputs, "GATED": gated, "BIAS": False, "SCALED": not add, "ADD": add}
    constants |= {"TILES": HIDDEN // tile.block_n, "BLOCK_TILES": next_power_of_two(HIDDEN // tile.block_n)}
    types = dict.fromkeys(("squares", "next_squares"), "*fp32")
    return Variant(name, matmul_kernel, constants, tile.num_warps, tile.num_stages, types)


def sample_variants() -> list[Variant]:
    sizes, with_power = launch_sizes(VOCAB)
    names = ("peaks", "sums", "temperatures", "log_min_ps", "top_ps")
    types = dict.fromkeys(names, "*fp32") | {"top_ks": "*i32", "table": "*i32"}
    types |= dict.fromkeys(("out", "places", "ranks", "keys"), "*i64")
    greedy = {"peaks": None, "temperatures": None, "keys": None, "RANDOM": False}
    kernels: list[tuple[str, triton.JITFunction, Constants, int]] = [
        ("scan greedy", scan_kernel, {**greedy, **sizes}, SCAN_WARPS),
        ("scan", scan_kernel, {"RANDOM": True, **sizes}, SCAN_WARPS),
        ("weigh", weigh_kernel, {**with_power}, WEIGH_WARPS),
        ("choose", choose_kernel, {**with_power}, CHOOSE_WARPS),
        ("choose filtered", choose_filtered_kernel, {**with_power}, CHOOSE_FILTERED_WARPS),
    ]
    return [
        Variant(f"{name} {logits}", kernel, constants, warps, types=types | {"logits": f"*{logits}"})
        for name, kernel, constants, warps in kernels
        for logits in ("fp32", "bf16")
        if "logits" in kernel.arg_names or logits == "fp32"
    ]


def variants() -> list[Variant]:
    rope: Constants = {
        "HEADS": HEADS,
        "KV_HEADS": KV_HEADS,
        "HEAD_DIM": HEAD_DIM,
        "BLOCK_HEADS": next_power_of_two(HEADS),
        "BLOCK_KV_HEADS": next_power_of_two(KV_HEADS),
        "BLOCK_HALF": next_power_of_two(HEAD_DIM // 2),
        "NORM": True,
    }
    gather: Constants = {"KV_HEADS": KV_HEADS, "HEAD_DIM": HEAD_DIM, "BLOCK_SIZE": BLOCK_SIZE}
    gather |= {"BLOCK_ROWS": KV_HEADS * BLOCK_SIZE, "BLOCK_D": HEAD_DIM}
    reduce: Constants = {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM, "BLOCK_D": HEAD_DIM}
    reduce |= {"MAX_SEGMENTS": MAX_SEGMENTS}
    swiglu: Constants = {"INTERMEDIATE": INTERMEDIATE, "BLOCK": SWIGLU_BLOCK}
    return [
        norm_variant("rms_norm", add=False),
        norm_variant("add_rms_norm", add=True),
        Variant("swiglu", swiglu_kernel, swiglu, 4),
        Variant("rope_cache", rope_cache_kernel, rope, 4),
        Variant("gather_keys", gather_keys_kernel, gather, 8),
        *(
            matmul_variant(f"matmul {name}, {rows} rows", rows, outputs, inputs, gated=gated, add=add)
            for name, outputs, inputs, gated, add in PRODUCTS
            for rows in (16, 32)
        ),
        decode_variant("decode", windowed=False, split=False),
        decode_variant("decode split", windowed=False, split=True),
        decode_variant("decode split windowed", windowed=True, split=True),
        shared_variant(),
        prefill_variant("prefill", windowed=False, split=False),
        prefill_variant("prefill split", windowed=False, split=True),
        prefill_variant("prefill windowed", windowed=True, split=False),
        Variant("attention_reduce", attention_reduce_kernel, reduce, 2),
        *sample_variants(),
    ]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes per thread, as the disassembler reads them off the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", report)}


def main() -> int:
    print(
        f"{'kernel':24}{'warps':>6}{'stages':>7}{'registers':>10}{'STACK':>6}{'shared KiB':>11}  tensor cores"
    )
    spills = 0
    for variant in variants():
        compiled = variant.compile()
        used = resources(compiled.asm["cubin"])
        spills += used["STACK"]
        ptx = compiled.asm["ptx"]
        matrix = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "-"
        print(
            f"{variant.name:24}{variant.num_warps:6}{variant.num_stages:7}{used['REG']:10}{used['STACK']:6}"
            f"{compiled.metadata.shared / 1024:11.1f}  {matrix}"
        )
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
