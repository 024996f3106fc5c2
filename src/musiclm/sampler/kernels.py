"""The two products that take a CPU the time of a step, in LLVM; see `native`.

Of the memory's bandwidth XLA makes two thirds with one row and a quarter with eight; it has no
product of floats and int8, and reads a cache on one core. These kernels read every number once, as
it lies, on all cores, and sum what belongs to a row in an order that other rows have no part in.

Shapes: G rows, M features in, F features out; L layers, H heads, S sequence, T of it that a step
may see, D head dimension.
"""

import math

import jax
import jax.numpy as jnp
from llvmlite import ir

from musiclm.nn import attention
from musiclm.sampler import int8, native
from musiclm.sampler.native import F32, I8, I32, I64, LANES, number

# Of matrices and caches.
DTYPES = (jnp.float32, jnp.int8)
# Features out that are an item of work, at least. Memory is read faster in longer pieces, so that
# there are no more items than threads where they are longer than this.
CHUNK = 512
# Features in that are summed at a time, in registers.
DEPTH = 8
# With so many rows, f32 weights are fetched ahead; with fewer, asking for them costs more than it
# gives.
MANY_ROWS = 4


def product(x_GM: jax.Array, kernel_MF: jax.Array) -> jax.Array:
    """[G, M] · [M, F] in f32, on a CPU.

    Args:
      x_GM: f32, few rows: every row is a pass over what is in the cache.
      kernel_MF: f32 or int8.
    """
    (num_rows, depth), width = x_GM.shape, kernel_MF.shape[1]
    element = I8 if kernel_MF.dtype == jnp.int8 else F32
    lanes, block = math.gcd(width, LANES), math.gcd(depth, DEPTH)
    fetches = element is I8 or num_rows >= MANY_ROWS

    def plan(b, data, shape, threads):
        del data
        rows, depth, width = shape(0, 0), shape(0, 1), shape(1, 1)
        share = b.mul(b.ceil_div(b.ceil_div(width, threads), number(LANES)), number(LANES))
        chunk = b.larger_integer(share, number(CHUNK))
        items = b.ceil_div(width, chunk)
        # Making a float of an int8 takes as long as reading a float, and so do four rows' products.
        num_bytes = b.mul(b.mul(depth, width), number(4))
        passes = b.add(b.sdiv(rows, number(4)), number(1))
        return items, b.mul(num_bytes, passes), [rows, depth, width, chunk]

    def item(b, data, sizes, index):
        (x, kernel, y), (rows, depth, width, chunk) = data, sizes
        first = b.mul(index, chunk)
        last = b.smaller_integer(b.add(first, chunk), width)
        with b.loop(number(0), rows) as row, b.loop(first, last, lanes) as column:
            b.write(native.floats(0.0, lanes), y, b.add(b.mul(row, width), column))
        # From a weight to the one that is fetched meanwhile.
        ahead = b.mul(width, number(block))
        with b.loop(number(0), depth, block) as feature, b.loop(first, last, lanes) as column:
            weights = []
            for i in range(block):
                place = b.add(b.mul(b.add(feature, number(i)), width), column)
                weights.append(b.read(kernel, element, place, lanes))
                if fetches:
                    b.prefetch(b.at(kernel, element, b.add(place, ahead)))
            with b.loop(number(0), rows) as row:
                place = b.add(b.mul(row, width), column)
                # Two sums: an addition has not to wait for the one before.
                sums = [b.read(y, F32, place, lanes), native.floats(0.0, lanes)]
                for i, weight in enumerate(weights):
                    at = b.add(b.mul(row, depth), b.add(feature, number(i)))
                    value = b.spread(b.read(x, F32, at), lanes)
                    sums[i % 2] = b.multiply_add(value, weight, sums[i % 2])
                b.write(b.fadd(*sums), y, place)

    name = f"musiclm_product_{kernel_MF.dtype}_{lanes}_{block}" + "_ahead" * fetches
    result = jax.ShapeDtypeStruct((num_rows, width), jnp.float32)
    return native.call(name, [result], [x_GM.astype(jnp.float32), kernel_MF], 4, plan, item)[0]


def attend(
    layer: int,
    query_GHD: jax.Array,
    keys: jax.Array | int8.Int8,
    values: jax.Array | int8.Int8,
    bias_HT: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """Attention of a step: [G, H, D] in f32, on a CPU.

    Args:
      query_GHD: f32, scaled.
      keys, values: the whole cache, [L, G, H, S, D], f32 or int8, of which it reads tokens 0 to
        `position` of a layer.
      bias_HT: f32, added to the scores.
      layer: which.
      position: int32, less than T.
    """
    size, is_int8 = query_GHD.shape[-1], isinstance(keys, int8.Int8)
    element, lanes = (I8 if is_int8 else F32), math.gcd(size, LANES)
    vectors = [number(i * lanes) for i in range(size // lanes)]
    caches = [*jax.tree.leaves(keys), *jax.tree.leaves(values)]
    operands = [query_GHD.astype(jnp.float32), *caches, bias_HT.astype(jnp.float32)]
    operands += [jnp.int32(layer), position.astype(jnp.int32)]
    bias_at, layer_at, position_at, result_at = range(len(caches) + 1, len(caches) + 5)

    def plan(b, data, shape, threads):
        del threads
        layer, position = (b.sext(b.load(data[at], typ=I32), I64) for at in (layer_at, position_at))
        known, items = b.add(position, number(1)), b.mul(shape(0, 0), shape(0, 1))
        num_bytes = b.mul(b.mul(items, known), number(2 * size * (1 if is_int8 else 4)))
        sizes = [shape(0, 1), shape(1, 3), shape(bias_at, 1), b.mul(layer, items), known]
        return items, num_bytes, sizes

    def item(b, data, sizes, index):
        num_heads, length, span, first, known = sizes
        first_token = b.mul(b.add(first, index), length)
        places = [data[at] for at in range(1, len(caches) + 1)]
        # Where this head's tokens begin, of keys and values, and of their scales.
        widths = [number(size), number(1)] * 2 if is_int8 else [number(size)] * 2
        elements = [I8, F32] * 2 if is_int8 else [F32] * 2
        begin = [
            b.at(place, kind, b.mul(first_token, width))
            for place, kind, width in zip(places, elements, widths, strict=True)
        ]
        key, value = begin[:: len(begin) // 2]
        bias = b.at(data[bias_at], F32, b.mul(b.urem(index, num_heads), span))
        this = b.mul(index, number(size))
        query = [b.read(data[0], F32, b.add(this, i), lanes) for i in vectors]

        padded = b.mul(b.ceil_div(known, number(LANES)), number(LANES))
        scores = b.memory(F32, padded)
        with b.loop(number(0), known) as token:
            place = b.mul(token, number(size))
            sums = native.floats(0.0, lanes)
            for vector, i in zip(query, vectors, strict=True):
                sums = b.multiply_add(vector, b.read(key, element, b.add(place, i), lanes), sums)
            score = b.total(sums)
            if is_int8:
                score = b.fmul(score, b.read(begin[1], F32, token))
            b.write(b.fadd(score, b.read(bias, F32, token)), scores, token)
        with b.loop(known, padded) as token:
            b.write(ir.Constant(F32, attention.MASKED), scores, token)

        most = b.variable(native.floats(attention.MASKED, LANES))
        with b.loop(number(0), padded, LANES) as token:
            b.store(b.larger(b.read(scores, F32, token, LANES), b.value(most)), most)
        largest = b.spread(b.largest(b.value(most)), LANES)
        norm = b.variable(native.floats(0.0, LANES))
        with b.loop(number(0), padded, LANES) as token:
            power = native.exp(b, b.fsub(b.read(scores, F32, token, LANES), largest))
            b.write(power, scores, token)
            b.store(b.fadd(power, b.value(norm)), norm)
        mixed = [b.variable(native.floats(0.0, lanes)) for _ in vectors]
        with b.loop(number(0), known) as token:
            place, weight = b.mul(token, number(size)), b.read(scores, F32, token)
            if is_int8:
                weight = b.fmul(weight, b.read(begin[3], F32, token))
            weight = b.spread(weight, lanes)
            for part, i in zip(mixed, vectors, strict=True):
                vector = b.read(value, element, b.add(place, i), lanes)
                b.store(b.multiply_add(weight, vector, b.value(part)), part)
        share = b.spread(b.fdiv(ir.Constant(F32, 1.0), b.total(b.value(norm))), lanes)
        for part, i in zip(mixed, vectors, strict=True):
            b.write(b.fmul(b.value(part), share), data[result_at], b.add(this, i))

    name = f"musiclm_attend_{caches[0].dtype}_{size}"
    result = jax.ShapeDtypeStruct(query_GHD.shape, jnp.float32)
    return native.call(name, [result], operands, 5, plan, item)[0].astype(query_GHD.dtype)
