"""Integers and floats as packed little-endian bytes: the arrays inside Batchyard's messages."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

I32 = np.dtype("<i4")
U32 = np.dtype("<u4")
U64 = np.dtype("<u8")
F32 = np.dtype("<f4")

Array = npt.NDArray[np.int32] | npt.NDArray[np.int64] | Sequence[int]


def pack_i32(values: Array) -> bytes:
    """Bytes of `values` [n] as i32. Raises OverflowError when a Python int does not fit."""
    return np.asarray(values, dtype=I32).tobytes()


def pack_u32(values: npt.NDArray[np.uint32] | Sequence[int]) -> bytes:
    """Bytes of `values` [n] as u32."""
    return np.asarray(values, dtype=U32).tobytes()


def pack_u64(values: npt.NDArray[np.uint64] | Sequence[int]) -> bytes:
    """Bytes of `values` [n] as u64."""
    return np.asarray(values, dtype=U64).tobytes()


def pack_f32(values: npt.NDArray[np.float32] | Sequence[float]) -> bytes:
    """Bytes of `values` [n] as f32."""
    return np.asarray(values, dtype=F32).tobytes()


def unpack_i32(data: bytes) -> npt.NDArray[np.int32]:
    """A read-only view of `data` as i32 [n]. Raises ValueError when the length is no multiple of 4."""
    return np.frombuffer(data, dtype=I32)


def unpack_u32(data: bytes) -> npt.NDArray[np.uint32]:
    """A read-only view of `data` as u32 [n]. Raises ValueError when the length is no multiple of 4."""
    return np.frombuffer(data, dtype=U32)


def unpack_u64(data: bytes) -> npt.NDArray[np.uint64]:
    """A read-only view of `data` as u64 [n]. Raises ValueError when the length is no multiple of 8."""
    return np.frombuffer(data, dtype=U64)


def unpack_f32(data: bytes) -> npt.NDArray[np.float32]:
    """A read-only view of `data` as f32 [n]. Raises ValueError when the length is no multiple of 4."""
    return np.frombuffer(data, dtype=F32)
