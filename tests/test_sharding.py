"""The rule table, and what does not divide."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from musiclm import errors, sharding
from musiclm.training import optim


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="'tensor': 2"):
        sharding.MeshConfig(tensor=2).make(jax.devices()[:1])
    with pytest.raises(ValueError, match="several -1"):
        sharding.MeshConfig(fsdp=-1).make()


def test_without_a_mesh_constrain_does_nothing():
    x = jnp.ones((2, 2))
    assert sharding.constrain(x, "data", None) is x


def test_rules_speak_of_trailing_dimensions_and_moments_follow_parameters():
    mesh = sharding.MeshConfig().make(jax.devices()[:1])
    leaf = jax.ShapeDtypeStruct((6, 8, 16), jnp.float32)  # a stack of six layers
    params = {
        "layers": {"query": {"kernel": leaf}, "scale": jax.ShapeDtypeStruct((6,), jnp.float32)}
    }
    tree = {"params": params, "opt_state": [{"mu": params}]}
    specs = jax.tree.map(lambda s: s.spec, sharding.state_sharding(tree, mesh))
    assert specs["params"]["layers"]["query"]["kernel"] == P(None, "fsdp", "tensor")
    assert specs["opt_state"][0]["mu"] == specs["params"]
    assert specs["params"]["layers"]["scale"] == P()


def abstract_mesh(*sizes):
    axis_types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.sharding.AbstractMesh(sizes, sharding.AXES, axis_types=axis_types)


def specs_on(tree, *sizes):
    """The specs of a tree on a mesh of devices that are not here."""
    mesh = abstract_mesh(*sizes)
    return jax.tree.map(lambda s: s.spec, sharding.state_sharding(tree, mesh))


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_axes_that_do_not_divide_are_dropped():
    tree = {"query": {"kernel": array(6, 8, 16)}, "up": {"kernel": array(6, 8, 15)}}
    specs = specs_on(tree, 2, 4, 2)
    assert specs["query"]["kernel"] == P(None, "fsdp", "tensor")
    assert specs["up"]["kernel"] == P(None, "fsdp", None)


@pytest.mark.parametrize(("algorithm", "copies"), [("adamw", 4), ("muon", 3), ("adafactor", 2)])
def test_all_that_is_as_large_as_a_parameter_lies_as_it_does(algorithm, copies):
    """Adafactor's factors lack an axis of their parameter, and none is taken for another."""
    optimizer = optim.OptimizerConfig(algorithm=algorithm, ema_decay=0.9)
    params = {
        "layers": {"down": {"kernel": array(16, 256, 128)}},
        "tokens": {"embedding": array(512, 256)},
    }
    specs = specs_on(
        {"params": params, "opt_state": jax.eval_shape(optimizer.make().init, params)}, 2, 4, 2
    )
    leaves = jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    of_kernel = [spec for path, spec in leaves if "kernel" in sharding.path_name(path)]
    assert of_kernel.count(P(None, "tensor", "fsdp")) == copies
    assert set(of_kernel) <= {P(None, "tensor", "fsdp"), P(), P(None, None), P(None)}


class Device(types.SimpleNamespace):
    platform, device_kind = "cpu", "cpu"

    def __hash__(self):
        return self.id


@pytest.mark.parametrize(
    ("mesh", "hosts", "parts"),
    [
        ({"fsdp": 2}, 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ({"tensor": 2}, 4, [(0,), (1,), (2,), (3,)]),
        ({"tensor": 8}, 2, [(0,), (0,)]),
        ({"fsdp": 2, "tensor": 4}, 4, [(0,), (0,), (1,), (1,)]),
    ],
)
def test_processes_that_hold_the_same_rows_feed_the_same(monkeypatch, mesh, hosts, parts):
    devices = [Device(id=i, process_index=i // (8 // hosts)) for i in range(8)]
    made = sharding.MeshConfig(**mesh).make(devices)
    for host, places in enumerate(parts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        assert sharding.places_of_rows(made) == (places, 8 // mesh.get("tensor", 1))


def test_hosts_of_square_chips_feed_places_that_are_apart(monkeypatch):
    """4 × 4 chips, 2 × 2 a host, as on a TPU pod."""
    devices = [Device(id=i, process_index=i // 8 * 2 + i % 4 // 2) for i in range(16)]
    made = sharding.MeshConfig(fsdp=4).make(devices)
    for host, places in enumerate([(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)]):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        assert sharding.places_of_rows(made) == (places, 16)


def test_hosts_that_share_a_part_of_their_rows_are_refused():
    devices = [Device(id=i, process_index=i // 3) for i in range(6)]
    with pytest.raises(ValueError, match=r"tensor is 2, and hosts share some rows"):
        sharding.places_of_rows(sharding.MeshConfig(tensor=2).make(devices))


def test_slices_are_the_outermost_part_of_data():
    # Numbered across the slices, as processes may be.
    devices = [tpu(i, i % 2, (i // 4, i // 2 % 2, 0)) for i in range(8)]
    mesh = sharding.MeshConfig(fsdp=2).make(devices)
    assert [d.slice_index for d in mesh.devices.ravel()] == [0] * 4 + [1] * 4
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    cpus = [Device(id=i) for i in range(8)]
    mesh = sharding.MeshConfig(fsdp=2, slices=4).make(cpus)
    assert [d.id for d in mesh.devices.ravel()] == list(range(8))
    with pytest.raises(ValueError, match=r"data is 1 for 2 slices: give a multiple of 2"):
        sharding.MeshConfig(fsdp=8).make(devices)
    with pytest.raises(ValueError, match=r"slices is 3 for 8 devices"):
        sharding.MeshConfig(slices=3).make(devices)


def test_a_single_row_is_left_whole():
    """Models are initialised on one."""
    mesh = abstract_mesh(2, 2, 1)
    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(lambda x: sharding.constrain(x, sharding.ROWS), array(1, 3))
        double = sharding.shard_map(
            lambda x: 2 * x, in_specs=[P(sharding.ROWS)], out_specs=P(sharding.ROWS)
        )
        assert "shard_map" not in str(jax.make_jaxpr(double)(array(1, 3)))
        assert "shard_map" in str(jax.make_jaxpr(double)(array(8, 3)))


def test_without_a_mesh_shard_map_does_nothing():
    assert sharding.shard_map(abs, in_specs=[P()], out_specs=P()) is abs


def tpu(index, slice_index, coords):
    return Device(id=index, platform="tpu", slice_index=slice_index, coords=coords, core_on_chip=0)


def test_fsdp_reaches_over_machines_of_gpus_and_not_over_slices_of_tpus():
    gpus = [Device(id=i, platform="gpu", slice_index=i // 8) for i in range(64)]
    mesh = sharding.MeshConfig(fsdp=16).make(gpus)
    assert mesh.shape == {"data": 4, "fsdp": 16, "tensor": 1}
    assert [d.id for d in mesh.devices.ravel()] == list(range(64))
    tpus = [tpu(i, i // 8, (i // 4 % 2, i // 2 % 2, i % 2)) for i in range(64)]
    with pytest.raises(ValueError, match=r"data is 4 for 8 slices"):
        sharding.MeshConfig(fsdp=16).make(tpus)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"fsdp": 0}, r"MeshConfig.fsdp is 0: give 1 or more, or -1"),
        ({"data": 0}, r"MeshConfig.data is 0: give 1 or more, or -1"),
        ({"tensor": -2}, r"MeshConfig.tensor is -2: give 1 or more, or -1"),
        ({"tensor": -1}, r"'tensor': -1} has several -1: give all axes but one a size"),
        ({"slices": 0}, r"MeshConfig.slices is 0: give 1 or more, or None"),
    ],
)
def test_sizes_of_no_mesh_are_told_at_once(sizes, told):
    with pytest.raises(errors.UserError, match=told):
        sharding.MeshConfig(**sizes)
