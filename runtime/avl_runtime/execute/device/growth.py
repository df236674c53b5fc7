"""How much room a cache gets on a device when a reply begins, and when it is full."""

from __future__ import annotations

from avl_runtime.execute.device.backend import DeviceBackend

GROWTH = 128  # rows added at a time; each time everything is bound and recorded anew


def grown(backend: DeviceBackend, top: int, steps: int) -> int:
    """Room for `top` rows and what at most `steps` more deserve."""
    rows = min(top + min(max(1, steps), GROWTH), backend.limits.cache_rows)
    return backend.place.room(rows)


def device_dense_bytes(backend: DeviceBackend, rows: int, steps: int, limit: int) -> int:
    """Bytes a dense cache would hold after `rows` of prompt and `steps` of at most `limit`.

    Follows the growth of `DeviceBatch`, so that a dense run's own bytes equal it.
    """
    place = backend.place
    room = grown(backend, rows, limit)
    while room < min(rows + steps, backend.limits.cache_rows):
        room = grown(backend, room, limit - (room - rows))
    # A dense cache's parked rows are the one block that graphs ask for.
    of_layer = place.nbytes(1, room) + place.nbytes(1, place.room(1))
    return 2 * backend.manifest.dims.num_layers * of_layer
