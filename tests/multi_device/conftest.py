"""What processes of several devices of a CPU need."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def environment_of_processes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        # A collective holds a thread until all devices are there. XLA makes as many threads as
        # devices, where there are fewer cores: two collectives of one device can take the last.
        patch.setenv("PJRT_NPROC", "32")
        yield
