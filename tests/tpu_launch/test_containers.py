"""The images are made of what is in the repository, in versions that are written down."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "tpu_launch" / "containers"


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_sources_exist_and_versions_are_pinned(name):
    lines = (FOLDER / f"{name}.Dockerfile").read_text().splitlines()
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    pins = [pin for pin in (FOLDER / f"{name}.txt").read_text().split("\n") if pin[:1] not in "#"]
    common = (ROOT / "locks" / "python3.12.txt").read_text().split("\n")
    jax = {pin.partition("==")[2] for pin in common if pin.startswith("jax==")}
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", pin), pin
        if pin.startswith("jax-"):
            assert {pin.partition("==")[2]} == jax


def test_the_image_of_hosts_that_mount_buckets_has_what_mounts_them():
    text = (FOLDER / "tpu.Dockerfile").read_text()
    assert re.search(r"apt-get install .* gcsfuse=\d+\.\d+\.\d+", text)
