"""Simulated workers that die: killed, or of a request that they were given."""

from batchyard.errors import WorkerLost
from protos.step_pb2 import WorkerDescription
from tests.scheduler.simulated_worker import VOCAB, SimulatedTransport, SimulatedWorker

POISON = VOCAB - 1  # as the first token of a prompt


class MortalWorker(SimulatedWorker):
    """Dies when it computes token `fatal_at` of a sequence that begins with POISON."""

    def __init__(self, fatal_at=0, **shape):
        super().__init__(**shape)
        self.fatal_at = fatal_at
        self.deaths = 0  # of poison

    def execute(self, batch):
        result = super().execute(batch)
        if any(row.tokens[0] == POISON and row.computed > self.fatal_at for row in self.rows.values()):
            self.deaths += 1
            self.start_anew()
            raise WorkerLost("died")
        return result

    def start_anew(self):
        """As another process, which remembers nothing."""
        before, self.worker = self.worker, WorkerDescription()
        self.worker.CopyFrom(before)
        self.worker.epoch += 1000  # no other worker's
        self.slots.clear()
        self.host.clear()
        self.rows.clear()
        self.saves.clear()
        self.loads.clear()
        self.generations = [0] * len(self.generations)


class MortalTransport(SimulatedTransport):
    step_seconds = 0.0

    async def open(self):
        stream = await super().open()
        stream.step_seconds = self.step_seconds
        return stream

    def kill(self):
        """By hand, whatever it is doing."""
        if self.stream and not self.stream.broken:
            self.stream.break_off()
            self.simulated.start_anew()
