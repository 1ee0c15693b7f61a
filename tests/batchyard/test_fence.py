import pytest

from batchyard.fence import fence_in, metadata


def test_a_fence_travels_in_metadata():
    assert fence_in((("other", "x"), *metadata(2**60))) == 2**60


@pytest.mark.parametrize("given", [None, (), (("batchyard-fence", "-1"),), (("batchyard-fence", b"1"),)])
def test_what_is_no_fence(given):
    assert fence_in(given) is None
