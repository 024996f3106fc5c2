"""Products of activations with a matrix, with a gradient that CPUs are fast at.

Shape legend: N rows, M inputs, F features.
"""

import jax
from jax import lax


@jax.custom_vjp
def project(x_NM: jax.Array, kernel_MF: jax.Array) -> jax.Array:
    """`x_NM @ kernel_MF`, with a kernel's gradient of our own on a CPU.

    That gradient sums over rows, the axis that both of its factors are stored along. XLA:CPU's
    products of that form take up to twice as long as others, where turning the narrower factor
    round first costs little.
    """
    return x_NM @ kernel_MF


def _forward(x_NM, kernel_MF):
    return x_NM @ kernel_MF, (x_NM, kernel_MF)


def _backward(inputs, dy_NF):
    x_NM, kernel_MF = inputs
    dkernel_MF = lax.platform_dependent(x_NM, dy_NF, cpu=_turned, default=_product)
    return dy_NF @ kernel_MF.T, dkernel_MF


project.defvjp(_forward, _backward)


def _product(x_NM, dy_NF):
    return x_NM.T @ dy_NF


def _turned(x_NM, dy_NF):
    if x_NM.shape[1] > dy_NF.shape[1]:
        return _turned(dy_NF, x_NM).T
    # Behind the barrier, or XLA makes one product of both again.
    return lax.optimization_barrier(x_NM.T) @ dy_NF
