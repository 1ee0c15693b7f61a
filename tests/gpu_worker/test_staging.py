"""Arrays on their way to the device."""

import numpy as np
import pytest
import torch

from gpu_worker.staging import HostStager, PinnedStager
from protos.packing import pack_i32, unpack_i32

ARRAYS = [
    np.arange(7, dtype=np.int32),
    np.arange(12, dtype=np.int64).reshape(3, 4)[:, 1:3],
    np.array([0.5, -1.5, 3.0], np.float32),
    np.zeros((2, 0), np.int32),
    unpack_i32(pack_i32([4, 5])),  # read-only
]


def check(stager, arrays):
    upload = stager.begin()
    numbers = [upload.add(array) for array in arrays]
    upload.send()
    for array, number in zip(arrays, numbers, strict=True):
        tensor = upload.get(number)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % tensor.element_size() == 0
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)
        assert tensor.cpu().numpy().dtype == array.dtype


def test_host_arrays_become_tensors():
    check(HostStager(), ARRAYS)
    check(HostStager(), [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_one_copy_brings_all_and_buffers_are_not_overwritten():
    stager = PinnedStager(torch.device("cuda"), depth=2, capacity=64)
    check(stager, ARRAYS)
    check(stager, [])
    # Far more than the buffers hold, and far more uploads than there are buffers, none of them waited for.
    arrays = [np.full(100_000, step, np.int32) for step in range(20)]
    uploads = []
    for array in arrays:
        upload = stager.begin()
        upload.add(array)
        upload.send()
        uploads.append(upload)
    for array, upload in zip(arrays, uploads, strict=True):
        np.testing.assert_array_equal(upload.get(0).cpu().numpy(), array)
