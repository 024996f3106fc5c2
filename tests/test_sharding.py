"""The rule table, and what does not divide."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from musiclm import sharding


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
