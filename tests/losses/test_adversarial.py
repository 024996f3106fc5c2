import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.losses import adversarial


def test_hinge_losses_equal_hand_values():
    real = [jnp.array([[2.0, 0.5]]), jnp.array([[-1.0]])]
    fake = [jnp.array([[-2.0, 0.0]]), jnp.array([[1.0]])]
    # First: (0 + 0.5) / 2 + (0 + 1) / 2; second: 2 + 2.
    assert float(adversarial.discriminator_hinge(real, fake)) == pytest.approx((0.75 + 4) / 2)
    # First: (3 + 1) / 2; second: 0.
    assert float(adversarial.generator_hinge(fake)) == pytest.approx(1.0)


def test_undecided_discriminator_loses_two():
    zeros = [jnp.zeros((2, 3))]
    assert float(adversarial.discriminator_hinge(zeros, zeros)) == 2.0


def test_feature_loss_is_the_mean_gap_and_leaves_real_features_alone():
    real = [[jnp.array([1.0, 2.0]), jnp.array([0.0])], [jnp.array([4.0])]]
    fake = [[jnp.array([0.0, 4.0]), jnp.array([3.0])], [jnp.array([4.0])]]
    # A mean over the layers of both discriminators: 1.5, 3 and 0.
    loss, gradients = jax.value_and_grad(adversarial.feature_matching, argnums=0)(real, fake)
    assert float(loss) == pytest.approx((1.5 + 3.0 + 0.0) / 3)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))


def test_balancer_equals_hand_computation():
    gradients = {"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([[0.0, 0.01]])}
    weights = {"a": 1.0, "b": 3.0}
    state = adversarial.BalancerState.create(["a", "b"])
    total, state = adversarial.balance_gradients(gradients, weights, state, decay=0.9)
    # After one step the averages are the norms, 5 and 0.01.
    np.testing.assert_allclose(
        total, 0.25 * jnp.array([[0.6, 0.8]]) + 0.75 * jnp.array([[0, 1.0]]), rtol=1e-5
    )
    second = {"a": jnp.array([[0.0, 10.0]]), "b": gradients["b"]}
    total, state = adversarial.balance_gradients(second, weights, state, decay=0.9)
    average = (0.9 * 0.1 * 5 + 0.1 * 10) / (0.9 * 0.1 + 0.1)
    np.testing.assert_allclose(total, [[0.0, 0.25 * 10 / average + 0.75]], rtol=1e-4)


def test_balancer_ignores_losses_of_weight_zero():
    gradients = {"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([[7.0, 0.0]])}
    state = adversarial.BalancerState.create(["a", "b"])
    total, state = adversarial.balance_gradients(gradients, {"a": 2.0, "b": 0.0}, state)
    np.testing.assert_allclose(total, [[0.6, 0.8]], rtol=1e-4)
    assert float(state.norms["b"]) == 0.0
    total, _ = adversarial.balance_gradients(gradients, {"a": 2.0, "b": 2.0}, state)
    np.testing.assert_allclose(total, [[0.8, 0.4]], rtol=1e-3)


def test_balanced_gradient_is_blind_to_scale():
    gradients = {"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([[1.0, -2.0]])}
    scaled = {"a": 1e-6 * gradients["a"], "b": 1e4 * gradients["b"]}
    weights = {"a": 1.0, "b": 1.0}
    state = adversarial.BalancerState.create(["a", "b"])
    first, _ = adversarial.balance_gradients(gradients, weights, state)
    second, _ = adversarial.balance_gradients(scaled, weights, state)
    np.testing.assert_allclose(first, second, rtol=1e-4)
