"""Optimizers by hand, and averages of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm.training import optim

PARAMS = {"layer": {"kernel": jnp.arange(12.0).reshape(3, 4) / 7, "bias": jnp.ones(4)}}


def descend(config, steps, params=PARAMS):
    """Weights, and the optimizer's state, after each step on the squared norm."""
    optimizer = config.make()
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        yield params, state


def test_the_average_is_a_moving_one_of_the_weights():
    config = optim.OptimizerConfig(learning_rate=0.1, warmup_steps=0, ema_decay=0.75)
    expected = np.asarray(PARAMS["layer"]["kernel"])
    steps = list(descend(config, 5))
    for params, _ in steps:
        expected = 0.75 * expected + 0.25 * np.asarray(params["layer"]["kernel"])
    params, state = steps[-1]
    average = optim.averaged(params, state)
    np.testing.assert_allclose(average["layer"]["kernel"], expected, rtol=1e-5)
    assert not np.allclose(expected, params["layer"]["kernel"])


def test_without_an_average_the_weights_are_taken():
    *_, (params, state) = descend(optim.OptimizerConfig(warmup_steps=0), 1)
    assert optim.averaged(params, state) is params


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("constant", 0.1, 0.1),
        ("cosine", 0.1 * (0.2 + 0.8 / 2), 0.1 * 0.2),
        ("transformer", 0.1 * (10 / 55) ** 0.5, 0.1 * (10 / 100) ** 0.5),
    ],
)
def test_rates_rise_to_the_peak_and_fall_by_the_schedule(schedule, middle, end):
    config = optim.OptimizerConfig(
        learning_rate=0.1, warmup_steps=10, total_steps=100, schedule=schedule, final_fraction=0.2
    )
    rates = [float(config.rate(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, middle, end], rtol=1e-5)


def test_large_gradients_are_clipped_to_the_norm():
    """That of all weights together; Adam's moments show what came through."""
    gradients = jax.tree.map(lambda x: 100 * x, PARAMS)

    def moments(gradients, clip_norm):
        optimizer = optim.OptimizerConfig(clip_norm=clip_norm).make()
        return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[1]

    scale = 0.5 / optax.global_norm(gradients)
    scaled = moments(jax.tree.map(lambda x: scale * x, gradients), 0.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moments(gradients, 0.5), scaled
    )
    whole = optax.tree.get(moments(gradients, 0.0), "mu")["layer"]["kernel"]
    assert (
        jnp.abs(whole).max() > 100 * jnp.abs(optax.tree.get(scaled, "mu")["layer"]["kernel"]).max()
    )


@pytest.mark.parametrize("algorithm", optim.ALGORITHMS)
def test_it_descends(algorithm):
    config = optim.OptimizerConfig(
        algorithm=algorithm, learning_rate=0.05, warmup_steps=0, schedule="constant"
    )
    *_, (params, _) = descend(config, 200)
    assert jnp.abs(params["layer"]["kernel"]).mean() < 0.3


@pytest.mark.parametrize("algorithm", optim.ALGORITHMS)
def test_kernels_alone_decay_by_rate_and_decay(algorithm):
    config = optim.OptimizerConfig(
        algorithm=algorithm, learning_rate=0.5, warmup_steps=0, schedule="constant",
        weight_decay=0.1,
    )  # fmt: skip
    optimizer = config.make()
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
    kernel, bias = updates["layer"]["kernel"], updates["layer"]["bias"]
    np.testing.assert_allclose(kernel, -0.5 * 0.1 * PARAMS["layer"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(bias, 0.0)


def test_adafactor_keeps_rows_and_columns_instead_of_a_matrix():
    params = {"kernel": jnp.ones((256, 512))}
    states = {
        algorithm: jax.eval_shape(optim.OptimizerConfig(algorithm=algorithm).make().init, params)
        for algorithm in optim.ALGORITHMS
    }
    sizes = {name: sum(x.size for x in jax.tree.leaves(s)) for name, s in states.items()}
    assert sizes["adamw"] > 2 * 256 * 512
    assert sizes["adafactor"] < 2 * (256 + 512)


@pytest.mark.parametrize(
    ("field", "value"),
    [("algorithm", "sgd"), ("schedule", "linear"), ("muon_rms", 0.0), ("ema_decay", 1.0)],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=f"OptimizerConfig.{field} is"):
        optim.OptimizerConfig(**{field: value})


def test_muon_makes_the_updates_of_every_layers_kernel_orthogonal():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 8, 16), "bias": (3, 16), "embedding": (5, 16)}
    gradients = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    params = jax.tree.map(jnp.zeros_like, gradients)
    constant = {"learning_rate": 0.5, "warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0}
    config = optim.OptimizerConfig(algorithm="muon", muon_rms=0.2, **constant)
    by_muon, by_adam = (
        optimizer.update(gradients, optimizer.init(params), params)[0]
        for optimizer in (config.make(), optax.nadam(0.5, b1=config.b1, b2=config.b2))
    )
    kernel_LIO = by_muon["kernel"]
    singular = np.linalg.svd(kernel_LIO, compute_uv=False) / (0.5 * 0.2 * np.sqrt(16))
    assert np.all((singular > 0.6) & (singular < 1.3))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(kernel_LIO**2)), 0.5 * 0.2, rtol=0.2)
    for name in ("bias", "embedding"):
        np.testing.assert_allclose(by_muon[name], by_adam[name], rtol=1e-5)
