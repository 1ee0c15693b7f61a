"""What clocks say of steps: on a simulated device, whose events know when they were passed."""

import gc
import time
import weakref

import torch

from gpu_worker.step_clock import DeviceClocks, clocks_for


class Device:
    """Its clock stands still until it is told to go on; in milliseconds."""

    def __init__(self):
        self.now = 0.0
        self.clocks = DeviceClocks(lambda: Event(self))

    def step(self, arrived_ns, idle=0.0, forward=3.0, sample=1.0):
        """A step that the device has done; its results have not been seen."""
        clock = self.clocks.start(arrived_ns)
        self.now += idle
        clock.begin()
        self.now += forward
        clock.forward_done()
        self.now += sample
        clock.sample_done()
        return clock


class Event:
    def __init__(self, device):
        self.device = device
        self.at = None

    def record(self):
        self.at = self.device.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_the_parts_of_a_step():
    times = Device().step(time.perf_counter_ns() - 10_000_000).times()
    assert (times.forward_us, times.sample_us, times.idle_us) == (3000, 1000, 0)
    assert times.queue_us >= 6000
    assert abs(times.ended_ns - time.time_ns()) < 10**9


def test_a_gap_counts_where_the_next_step_was_there_already():
    device = Device()
    first = device.step(time.perf_counter_ns())
    second = device.step(time.perf_counter_ns(), idle=0.25)
    assert first.times().idle_us == 0
    assert second.times().idle_us == 250


def test_a_gap_does_not_count_where_there_was_nothing_to_do():
    device = Device()
    device.step(time.perf_counter_ns()).times()
    assert device.step(time.perf_counter_ns(), idle=50.0).times().idle_us == 0


def test_a_gap_after_a_step_that_nobody_waited_for_is_unknown():
    device = Device()
    device.step(time.perf_counter_ns())
    assert device.step(time.perf_counter_ns(), idle=1.0).times().idle_us == 0


def test_clocks_keep_no_history():
    device = Device()
    first = weakref.ref(device.step(0)._end.event)
    device.step(0)
    device.step(0)
    gc.collect()
    assert first() is None


def test_a_cpu_is_never_idle_between_steps():
    clock = clocks_for(torch.device("cpu")).start(time.perf_counter_ns())
    clock.begin()
    clock.forward_done()
    clock.sample_done()
    assert clock.times().idle_us == 0
