"""Whether blocks, rows and requests account for themselves when nothing runs."""

from protos.scheduling_pb2 import Description, WorkerState


def unaccounted(state: Description) -> str:
    """What is left of requests that have all ended, in words; empty where nothing is."""
    found = []
    if state.running or state.waiting:
        found.append(f"{state.running} requests run, {state.waiting} wait")
    for worker in state.workers:
        found += _of_worker(worker)
    return "; ".join(found)


def _of_worker(worker: WorkerState) -> list[str]:
    name = worker.worker_id or worker.address
    if not worker.connected:
        return [f"{name} is away"]
    if worker.rows or worker.held_blocks or worker.steps_in_flight:
        return [f"{name}: {worker.rows} rows, {worker.held_blocks} blocks, {worker.steps_in_flight} steps"]
    if worker.free_blocks + worker.cached_blocks != worker.num_blocks:
        return [f"{name}: {worker.free_blocks} free + {worker.cached_blocks} cached != {worker.num_blocks}"]
    return []
