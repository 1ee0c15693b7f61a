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

from gpu_worker.kernels.attention import attention_kernel
from gpu_worker.kernels.attention_reduce import attention_reduce_kernel
from gpu_worker.kernels.launch_shapes import (
    MAX_SEGMENTS,
    SWIGLU_BLOCK,
    AttentionTile,
    chunk_tile,
    decode_tile,
    next_power_of_two,
    row_tile,
)
from gpu_worker.kernels.rms_norm import rms_norm_kernel
from gpu_worker.kernels.rope_cache import rope_cache_kernel
from gpu_worker.kernels.swiglu import swiglu_kernel

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4096, 14336, 32, 8, 128, 16
HOPPER = GPUTarget("cuda", 90, 32)
# Arguments that are not pointers to activations or weights, and what they are.
SCALARS = {"first_seq": "i32", "end_seq": "i32", "window": "i32", "scale": "fp32", "eps": "fp32"}
SCALARS |= {"num_rows": "i32", "first_token": "i32", "num_segments": "i32", "table_stride": "i32"}
INTEGERS = {"block_tables": "*i32", "query_start": "*i32", "seq_lens": "*i32", "positions": "*i32"}
FLOATS = {"cos_sin": "*fp32", "log_sums": "*fp32", "parts": "*fp32"}
TYPES = {**SCALARS, **INTEGERS, **FLOATS, "slots": "*i64"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel as it is compiled for one use."""

    name: str
    kernel: triton.JITFunction
    constants: dict[str, int | bool]
    num_warps: int
    num_stages: int = 3
    types: dict[str, str] = field(default_factory=dict)

    def compile(self) -> triton.compiler.CompiledKernel:
        names = self.kernel.arg_names
        strides = {name: "i32" for name in names if name.endswith("_stride")}
        types = strides | TYPES | self.types | dict.fromkeys(self.constants, "constexpr")
        signature = {name: types.get(name, "*bf16") for name in names}
        # What the launcher finds out about real arguments: strides and addresses are multiples of 16.
        aligned = [i for i, name in enumerate(names) if name in strides or signature[name].startswith("*")]
        aligned = [i for i in aligned if names[i] != "table_stride"]
        source = ASTSource(
            fn=self.kernel,
            signature=signature,
            constexprs=self.constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return triton.compile(source, target=HOPPER, options=options)


def norm_variant(name: str, hidden: int, heads: int, add: bool) -> Variant:
    tile = row_tile(hidden)
    constants: dict[str, int | bool] = {"ADD": add, "HEADS": heads, "HIDDEN": hidden}
    constants |= {"BLOCK_ROWS": tile.rows, "BLOCK_HIDDEN": tile.columns}
    return Variant(name, rms_norm_kernel, constants, tile.num_warps)


def attention_variant(name: str, tile: AttentionTile, windowed: bool, split: bool) -> Variant:
    constants: dict[str, int | bool] = {k: v for k, v in tile.options.items() if k.startswith("BLOCK")}
    constants |= {"KV_HEADS": KV_HEADS, "GROUP": HEADS // KV_HEADS, "HEAD_DIM": HEAD_DIM}
    constants |= {"BLOCK_SIZE": BLOCK_SIZE, "WINDOWED": windowed, "SPLIT": split}
    types = {"out": "*fp32"} if split else {"log_sums": "*bf16"}
    return Variant(name, attention_kernel, constants, tile.num_warps, tile.num_stages, types)


def variants() -> list[Variant]:
    decode, chunk = (make(HEADS // KV_HEADS, HEAD_DIM, 2) for make in (decode_tile, chunk_tile))
    rope = {
        "HEADS": HEADS,
        "KV_HEADS": KV_HEADS,
        "HEAD_DIM": HEAD_DIM,
        "BLOCK_HEADS": next_power_of_two(HEADS),
        "BLOCK_KV_HEADS": next_power_of_two(KV_HEADS),
        "BLOCK_HALF": next_power_of_two(HEAD_DIM // 2),
    }
    reduce = {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM, "MAX_SEGMENTS": MAX_SEGMENTS, "BLOCK_D": decode.block_d}
    swiglu = {"INTERMEDIATE": INTERMEDIATE, "BLOCK": SWIGLU_BLOCK}
    return [
        norm_variant("rms_norm", HIDDEN, 1, add=False),
        norm_variant("rms_norm of heads", HEAD_DIM, HEADS, add=False),
        norm_variant("add_rms_norm", HIDDEN, 1, add=True),
        Variant("swiglu", swiglu_kernel, dict(swiglu), 4),
        Variant("rope_cache", rope_cache_kernel, dict(rope), 4),
        attention_variant("decode", decode, windowed=False, split=False),
        attention_variant("decode split", decode, windowed=False, split=True),
        attention_variant("decode split windowed", decode, windowed=True, split=True),
        attention_variant("chunk", chunk, windowed=False, split=False),
        attention_variant("chunk split", chunk, windowed=False, split=True),
        attention_variant("chunk windowed", chunk, windowed=True, split=False),
        Variant("attention_reduce", attention_reduce_kernel, dict(reduce), 2),
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
