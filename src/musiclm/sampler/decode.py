"""Token-by-token decoding with an explicit cache.

The model's parameters, stacked by layer for training, come apart once (`unroll`): a loop over
separate matrices is faster than one that slices a stack. Every function here is pure, state in and
state out; the state is donated, so that the cache is updated where it lies.

Rows lie over the devices of a mesh with the one axis `ROWS`, the same number on each. A device
works as if it were alone: what comes of a row does not depend on how many there are.

Shapes: L layers, B batch, G rows of the cache (2 B with guidance), H heads, S sequence, D head
dimension, M model dimension, Q levels, K codes.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from musiclm.models import token_lm
from musiclm.models.token_lm import TokenLMConfig
from musiclm.nn import attention, transformer
from musiclm.sampler import int8, logits, products

# Where attention in a step can't stop at what is known, it reads the cache up to the next multiple
# of this, not to its end; each multiple is a compilation. On an H200 multiples of 128 helped the
# semantic stage a little, and the coarse one not at all.
SPAN = 512
# Prefixes are padded to a multiple of this fraction of the sequence, for the same reason.
PREFILL_FRACTION = 8
# The axis of the mesh.
ROWS = "rows"


class Cache(NamedTuple):
    """Keys and values of every token seen, [L, G, H, S, D].

    Heads come before tokens: a head's keys are then contiguous. Kept as int8, a vector of D has a
    scale of its own.
    """

    keys: jax.Array | int8.Int8
    values: jax.Array | int8.Int8


class State(NamedTuple):
    """Where a decoding stands.

    Attributes:
      cache: of tokens 0 to `known` - 2; what it holds further on has no meaning.
      ids_GS: the sequence, int32; of meaning up to `known`, or as far as the row was given. With
        guidance each device has its rows twice, once more with the null condition.
      known: int32 scalar, how many tokens are there. The last of them is the next step's input.
    """

    cache: Cache
    ids_GS: jax.Array
    known: jax.Array


# How a state lies over the mesh.
_STATE = State(P(None, ROWS), P(ROWS), P())


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the given devices; of those of this process by default."""
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.array(devices), (ROWS,), axis_types=(AxisType.Auto,))


def fetch(array: jax.Array) -> np.ndarray:
    """A program's result on the host; every result is to come this way.

    Raises:
      JaxRuntimeError: the program failed, such as for want of memory.
    """
    # Programs run on after their call, and fail later. On a CPU `int()` or `np.asarray` of what a
    # failed one should have made can wait for ever, deaf to Ctrl-C; this raises what went wrong.
    return np.asarray(jax.block_until_ready(array))


def unroll(
    config: TokenLMConfig, params: Mapping[str, Any], *, int8_weights: bool = False
) -> dict[str, Any]:
    """The parameters as decoding wants them: a list of layers, with matrices of one input joined.

    Args:
      config: the model.
      params: of `TokenLM`, arrays of JAX or NumPy.
      int8_weights: keeps the layers' matrices, nearly all that there is to read, as int8 with a
        scale a column.
    """
    dtype = config.transformer.dtype
    decoder = jax.device_get(params["decoder"])
    stacked = decoder["layers"]

    def matrix(layer, *paths):
        kernels = [stacked[module][name]["kernel"][layer] for module, name in paths]
        kernel_MF = np.concatenate(kernels, axis=1)
        return int8.quantize(kernel_MF, 0) if int8_weights else jnp.asarray(kernel_MF, dtype)

    query_key_value = [("attention", name) for name in ("query", "key", "value")]
    up = [("mlp", "up"), ("mlp", "gate")] if config.transformer.gated else [("mlp", "up")]
    layers = [
        {
            "attention_norm": jnp.asarray(stacked["attention_norm"]["scale"][layer]),
            "query_key_value": matrix(layer, *query_key_value),
            "out": matrix(layer, ("attention", "out")),
            "mlp_norm": jnp.asarray(stacked["mlp_norm"]["scale"][layer]),
            "up": matrix(layer, *up),
            "down": matrix(layer, ("mlp", "down")),
        }
        for layer in range(config.transformer.num_layers)
    ]
    weights = {
        "tokens": jnp.asarray(params["tokens"]["embedding"], dtype),
        "relative_bias": jnp.asarray(decoder["relative_bias"]["embedding"]),
        "layers": layers,
        "final_norm": jnp.asarray(decoder["final_norm"]["scale"]),
    }
    if config.tied_embedding:
        embedding_VM = jnp.asarray(params["tokens"]["embedding"])
        weights["head"] = token_lm.tied_kernel(config.layout, embedding_VM)
    else:
        weights["head"] = jnp.asarray(params["head"]["kernel"])
    if config.time_embedding:
        weights["times"] = jnp.asarray(params["times"]["embedding"], dtype)
    if config.aligned_prefix:
        weights["aligned"] = jnp.asarray(params["aligned"]["kernel"], dtype)
    return weights


def prefill_length(config: TokenLMConfig, known: int) -> int:
    """How many tokens `start` computes for so many known ones: few lengths, few compilations.

    A bare prefix, the usual case, has a length of its own.
    """
    layout = config.layout
    if known <= layout.prefix_length:
        return layout.prefix_length
    share = -(-layout.sequence_length // PREFILL_FRACTION)
    return min(layout.sequence_length, -(-known // share) * share)


def start(
    config: TokenLMConfig,
    mesh: Mesh,
    weights: Mapping[str, Any],
    ids_BS: jax.Array,
    known: int,
    *,
    guided: bool,
    int8_cache: bool = False,
) -> State:
    """Computes the cache of the tokens that are there already, all at once.

    Args:
      config: the model.
      mesh: from `make_mesh`; its size divides B.
      weights: from `unroll`, on every device of the mesh.
      ids_BS: int32, the first `known` of them given.
      known: at least 1.
      guided: whether rows are to be there once more, with the null condition.
      int8_cache: keeps keys and values as int8.
    """
    length = prefill_length(config, known)
    return _start(config, mesh, length, guided, int8_cache, weights, ids_BS, jnp.int32(known))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(config, mesh, length, guided, int8_cache, weights, ids_BS, known) -> State:
    return jax.shard_map(
        functools.partial(_start_on_device, config, length, guided, int8_cache),
        mesh=mesh,
        in_specs=(P(), P(ROWS), P()),
        out_specs=_STATE,
        check_vma=False,
    )(weights, ids_BS, known)


def _start_on_device(config, length, guided, int8_cache, weights, ids_GS, known) -> State:
    if guided:
        dropped_B = jnp.ones(len(ids_GS), bool)
        ids_GS = jnp.concatenate([ids_GS, config.layout.drop_condition(ids_GS, dropped_B)])
    cfg = config.transformer
    x_BTM = _embed(config, weights, ids_GS, jnp.arange(length))
    bias_HT = _distance_bias(config, weights, length)
    keys, values = [], []
    for layer in weights["layers"]:
        h_BTM = transformer.rms_norm(x_BTM, layer["attention_norm"])
        heads = (
            attention.split_heads(part, cfg.num_heads)
            for part in jnp.split(products.project(h_BTM, layer["query_key_value"]), 3, axis=-1)
        )
        query, key, value = heads
        if cfg.rotary:
            query, key = (attention.rotary(x, np.arange(length)) for x in (query, key))
        keys.append(_cached(key, int8_cache))
        values.append(_cached(value, int8_cache))
        # Read as in the steps that follow: a prompt has one meaning, whoever goes through it.
        seen = (int8.read(part, cfg.dtype) for part in (keys[-1], values[-1]))
        mixed = attention.causal_attention(query, *seen, bias_HT, cfg.query_block)
        x_BTM = x_BTM + products.project(attention.join_heads(mixed), layer["out"])
        x_BTM = x_BTM + _mlp(config, layer, x_BTM)
    rest = ids_GS.shape[1] - length
    padding = ((0, 0), (0, 0), (0, 0), (0, rest), (0, 0))

    def stack(*layers):
        return jnp.pad(jnp.stack(layers), padding)

    return State(Cache(jax.tree.map(stack, *keys), jax.tree.map(stack, *values)), ids_GS, known)


def _cached(vectors, int8_cache):
    """Keys or values [..., D] as the cache keeps them."""
    return int8.quantize(vectors, -1) if int8_cache else vectors


def advance(
    config: TokenLMConfig,
    mesh: Mesh,
    weights: Mapping[str, Any],
    state: State,
    keys_B: jax.Array,
    given_B: jax.Array,
    num_tokens: int,
    rows: logits.Rows,
    *,
    filtered: bool,
) -> State:
    """Draws the next tokens of every row.

    Args:
      config, mesh, weights: as in `start`.
      state: given up: its buffers are used again.
      keys_B: one a row. The token at a position is drawn with the row's key and the position
        alone, so that neither other rows nor the number of calls matter.
      given_B: int32, how many tokens of each row's sequence are given; up to there none is drawn.
      num_tokens: how many, at most as many as the sequence has left.
      rows, filtered: how; see `logits.sample`.
    """
    known = int(fetch(state.known))
    stop = known + num_tokens
    while known < stop:
        # Up to `span` tokens may be known while reading so much of the cache.
        span = _span(config, mesh, known)
        known = min(stop, span + 1)
        stop_here = jnp.int32(known)
        state = decode_until(
            config, mesh, span, filtered, weights, state, keys_B, given_B, stop_here, rows
        )
    return state


def compile_spans(
    config: TokenLMConfig,
    mesh: Mesh,
    weights: Mapping[str, Any],
    state: State,
    keys_B: jax.Array,
    given_B: jax.Array,
    rows: logits.Rows,
    *,
    filtered: bool,
) -> None:
    """Compiles what `advance` needs from a state on, which is used up; no step is taken.

    Raises:
      JaxRuntimeError: one of the programs failed; see `fetch`.
    """
    known = int(fetch(state.known))
    while known < config.layout.sequence_length:
        span, nowhere = _span(config, mesh, known), jnp.int32(0)
        state = decode_until(
            config, mesh, span, filtered, weights, state, keys_B, given_B, nowhere, rows
        )
        known = span + 1
    fetch(state.known)  # else the last one's failure would be told by whoever comes next


def bytes_read(
    config: TokenLMConfig,
    weights: Mapping[str, Any],
    num_rows: int,
    known: int,
    stop: int,
    *,
    int8_cache: bool = False,
) -> int:
    """Bytes that the steps from `known` to `stop` tokens can't do without reading, on a device.

    Every step reads the weights, of the head those of one level, and keys and values of what is
    known; of tables, such as that of the tokens, it takes a few rows.

    Args:
      config, weights, int8_cache: as in `start`.
      num_rows: of the cache, on the device.
      known, stop: tokens.
    """
    cfg, head = config.transformer, weights["head"]
    read_whole = {name: part for name, part in weights.items() if name not in ("tokens", "times")}
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(read_whole))
    weight_bytes -= head.nbytes - head.nbytes // len(head)
    vector = jax.ShapeDtypeStruct((cfg.head_dim,), cfg.dtype)
    kept = jax.eval_shape(functools.partial(_cached, int8_cache=int8_cache), vector)
    vector_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    token_bytes = 2 * cfg.num_layers * cfg.num_heads * vector_bytes
    return weight_bytes * (stop - known) + num_rows * token_bytes * sum(range(known, stop))


def _span(config: TokenLMConfig, mesh: Mesh, known: int) -> int:
    length = config.layout.sequence_length
    if products.reads_what_is_known(mesh.devices.flat[0].platform):
        return length
    return min(length, -(-known // SPAN) * SPAN)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames="state")
def decode_until(
    config, mesh, span, filtered, weights, state: State, keys_B, given_B, stop, rows: logits.Rows
) -> State:
    """The compiled loop of `advance`: steps until `stop` tokens are known.

    `span`: how much of the cache attention may read, at least `stop` - 1.
    """
    return jax.shard_map(
        functools.partial(_decode_on_device, config, span, filtered),
        mesh=mesh,
        in_specs=(P(), _STATE, P(ROWS), P(ROWS), P(), P(ROWS)),
        out_specs=_STATE,
        check_vma=False,
    )(weights, state, keys_B, given_B, stop, rows)


def _decode_on_device(config, span, filtered, weights, state, keys_B, given_B, stop, rows) -> State:
    # In reverse, with masked places after distance 0: one slice gives the bias of all keys, at any
    # position, and hides those that are still to come.
    num_rows, length = state.ids_GS.shape
    guided = num_rows == 2 * keys_B.shape[0]
    copies = 2 if guided else 1
    given_G = jnp.tile(given_B, copies)
    bias_HS = _distance_bias(config, weights, length)
    masked_HS = jnp.full((bias_HS.shape[0], span), attention.MASKED, bias_HS.dtype)
    line = jnp.concatenate([bias_HS[:, ::-1], masked_HS], axis=1)

    def step(state: State) -> State:
        position = state.known - 1
        bias_HT = lax.dynamic_slice_in_dim(line, length - 1 - position, span, axis=1)
        logits_BK, cache = _logits(config, weights, state.cache, state.ids_GS, position, bias_HT)
        if guided:
            logits_BK = logits.guide(logits_BK, rows.guidance_B)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.known)
        codes_G = jnp.tile(logits.sample(logits_BK, keys, rows, filtered=filtered), copies)
        layout = config.layout
        level = (state.known - layout.prefix_length) % layout.target_levels
        next_G = codes_G + layout.target_offset + level * layout.target_codebook_size
        given_now_G = lax.dynamic_index_in_dim(state.ids_GS, state.known, 1, keepdims=False)
        next_G = jnp.where(state.known < given_G, given_now_G, next_G)
        ids_GS = lax.dynamic_update_slice_in_dim(state.ids_GS, next_G[:, None], state.known, 1)
        return State(cache, ids_GS, state.known + 1)

    return lax.while_loop(lambda state: state.known < stop, step, state)


def _logits(config, weights, cache, ids_BS, position, bias_HT):
    """Scores of the token after `position`, over the codes of its level, and the new cache."""
    cfg = config.transformer
    x_BM = _embed(config, weights, ids_BS, position)
    keys, values = cache
    for index, layer in enumerate(weights["layers"]):
        h_BM = transformer.rms_norm(x_BM, layer["attention_norm"])
        query, key, value = (
            part.reshape(part.shape[0], cfg.num_heads, 1, cfg.head_dim)
            for part in jnp.split(products.project(h_BM, layer["query_key_value"]), 3, axis=-1)
        )
        if cfg.rotary:
            query, key = (attention.rotary(x, position) for x in (query, key))
        keys, values = (
            _write(cached, vector, index, position)
            for cached, vector in ((keys, key), (values, value))
        )
        mixed_BHD = products.attend(query[:, :, 0], keys, values, bias_HT, index, position)
        x_BM = x_BM + products.project(mixed_BHD.reshape(x_BM.shape[0], -1), layer["out"])
        x_BM = x_BM + _mlp(config, layer, x_BM)
    x_BM = transformer.rms_norm(x_BM, weights["final_norm"])
    layout = config.layout
    level = (position + 1 - layout.prefix_length) % layout.target_levels
    kernel_MK = lax.dynamic_index_in_dim(weights["head"], level, axis=0, keepdims=False)
    return x_BM.astype(jnp.float32) @ kernel_MK, Cache(keys, values)


def _write(cached, vectors, layer, position):
    """The cache with a token's keys or values."""
    where = (layer, 0, 0, position, 0)
    new = _cached(vectors, isinstance(cached, int8.Int8))
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice(x, y[None], where), cached, new)


def _embed(config, weights, ids_BS, positions):
    """Vectors of the tokens at the given positions (or at a single one)."""
    x = weights["tokens"][ids_BS[:, positions]]
    if config.time_embedding:
        x = x + weights["times"][jnp.asarray(config.layout.times)[positions]]
    if config.aligned_prefix:
        aligned = jnp.asarray(config.layout.aligned)[positions]
        x = x + token_lm.aligned_vectors(weights["tokens"], ids_BS, aligned) @ weights["aligned"]
    return x


def _mlp(config, layer, x):
    h = products.project(transformer.rms_norm(x, layer["mlp_norm"]), layer["up"])
    parts = jnp.split(h, 2, axis=-1) if config.transformer.gated else (h, None)
    return products.project(transformer.activate(*parts), layer["down"])


def _distance_bias(config, weights, num_distances):
    cfg = config.transformer
    buckets = attention.relative_buckets(num_distances, cfg.num_buckets, cfg.max_distance)
    return weights["relative_bias"][buckets].T
