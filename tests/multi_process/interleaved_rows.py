"""A process of a mesh whose places take turns between processes, as a pod's hosts do.

python interleaved_rows.py ADDRESS NUM_PROCESSES INDEX
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from data_pipelines.feed import rows
from musiclm import sharding

BATCH = 16


def main() -> None:
    """Feeds a batch, and holds the global array to its rows in order."""
    address, num_processes, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    jax.distributed.initialize(address, num_processes, index)
    by_process = np.array(jax.devices()).reshape(num_processes, -1)
    devices = by_process.T.reshape(-1, 2, 1)  # neighbours are of different processes
    mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    places, num_places = sharding.places_of_rows(mesh)
    assert places == tuple(range(index, num_places, num_processes)), places
    own = rows.rows_of(1, batch_size=BATCH, places=places, num_places=num_places)
    batch = sharding.to_devices({"row": own.astype(np.int32)}, mesh)
    assert batch["row"].shape == (BATCH,)
    whole = multihost_utils.process_allgather(batch["row"], tiled=True)
    np.testing.assert_array_equal(whole, BATCH + np.arange(BATCH))


if __name__ == "__main__":
    main()
