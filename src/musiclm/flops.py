"""How many operations a function's matrix products and convolutions take, by its jaxpr.

XLA's own count takes the body of a scan once, whatever its length, and counts recomputation as
work; what MFU divides by is the work that the model asks for.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# The backward pass multiplies every matrix twice: for the gradients of inputs and of weights.
TRAINING_PASSES = 3


def forward_flops(function: Callable[..., Any], *abstract_args: Any) -> int:
    """Floating-point operations of one call, a multiplication and an addition being two.

    Counts `dot_general` and `conv_general_dilated`, through scans (times their length), branches
    (the dearest), `shard_map` (times its devices), `jit`, `remat` and custom derivatives. The body
    of a `while_loop`, whose turns nobody knows, counts once; everything elementwise, and Fourier
    transforms, count nothing. Nothing is computed.

    Args:
      function: traced, not run.
      *abstract_args: its arguments: arrays, or `jax.ShapeDtypeStruct`s in any pytree.

    Returns:
      Operations of all devices together; a training step takes `TRAINING_PASSES` times those of
      its forward pass.
    """
    return _count(jax.make_jaxpr(function)(*abstract_args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        sizes = params["mesh"].shape
        return math.prod(sizes[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    return sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters, be they closed, open or several."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    params = equation.params
    kernel = equation.invars[1].aval
    # A kernel's shape holds the inputs of one group only. Zeros between inputs cost nothing.
    products = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * products // math.prod(params["lhs_dilation"])
