import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.packing import pack_f32, pack_i32, pack_u64, unpack_f32, unpack_i32, unpack_u64

I32 = st.integers(-(2**31), 2**31 - 1)
U64 = st.integers(0, 2**64 - 1)
F32 = st.floats(width=32, allow_nan=False)


@given(st.lists(I32))
def test_i32(values):
    data = pack_i32(values)
    assert data == struct.pack(f"<{len(values)}i", *values)
    assert unpack_i32(data).tolist() == values
    assert pack_i32(np.array(values, dtype=np.int32)) == data
    assert pack_i32(np.array(values, dtype=np.int64)) == data


@given(st.lists(U64))
def test_u64(values):
    data = pack_u64(values)
    assert data == struct.pack(f"<{len(values)}Q", *values)
    assert unpack_u64(data).tolist() == values
    assert pack_u64(np.array(values, dtype=np.uint64)) == data


@given(st.lists(F32))
def test_f32(values):
    data = pack_f32(values)
    assert data == struct.pack(f"<{len(values)}f", *values)
    assert unpack_f32(data).tolist() == values
    assert pack_f32(np.array(values, dtype=np.float32)) == data


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_i32_that_does_not_fit(value):
    with pytest.raises(OverflowError):
        pack_i32([value])


@pytest.mark.parametrize("value", [2**64, -1])
def test_u64_that_does_not_fit(value):
    with pytest.raises(OverflowError):
        pack_u64([value])


@pytest.mark.parametrize(("unpack", "size"), [(unpack_i32, 4), (unpack_u64, 8), (unpack_f32, 4)])
def test_cut_data_is_refused(unpack, size):
    with pytest.raises(ValueError, match="multiple"):
        unpack(b"\0" * (size + 1))


def test_unpacked_is_a_view_that_cannot_be_written():
    data = pack_i32([1, 2])
    values = unpack_i32(data)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 3


def test_strided_arrays_are_packed_in_order():
    assert unpack_i32(pack_i32(np.arange(6, dtype=np.int32)[::2])).tolist() == [0, 2, 4]
