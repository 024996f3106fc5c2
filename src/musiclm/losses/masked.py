"""What w2v-BERT and BERT learn from: what is hidden, and the losses.

Shapes: B batch, N frames or word pieces, C codebook width, K codes or pieces, M distractors,
P places that are predicted.
"""

import math

import jax
import jax.numpy as jnp


def sample_mask(
    key: jax.Array, batch_size: int, num_frames: int, *, start_prob: float, span: int
) -> jax.Array:
    """Hides spans of frames (w2v-BERT, section 3.2; wav2vec 2.0, section 3.1).

    Every frame starts a span with the same probability, spans may overlap, and the last ones
    are cut off by the end: of a long utterance 1 - (1 - start_prob)^span is hidden.

    Args:
      key: random key.
      batch_size, num_frames: B and N.
      start_prob: probability that a frame starts a span.
      span: frames of a span.

    Returns:
      bool [B, N], true where hidden.
    """
    starts_BN = jax.random.bernoulli(key, start_prob, (batch_size, num_frames))
    started_BN = jnp.cumsum(starts_BN, axis=-1)
    before_BN = jnp.pad(started_BN, ((0, 0), (span, 0)))[:, :num_frames]
    return started_BN > before_BN


def sample_pieces(
    key: jax.Array, ids_BN: jax.Array, *, share: float, num_special: int, num_pieces: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draws the word pieces to predict, and what stands in their places (BERT, section 3.1).

    Of each text the share is predicted, rounded, and one piece at least; so P = ⌈share · N⌉ places
    are enough for any. Of those that are predicted 80 % are hidden, 10 % replaced by any other of
    the batch and 10 % left as they are, since no text that the encoder is used on later has hidden
    ones. (The paper replaces by any of the vocabulary, which may hold pieces that no text has.)

    Args:
      key: random key.
      ids_BN: int32; those below `num_special`, such as padding, are not predicted.
      share: how much of a text's pieces is predicted.
      num_special: ids that are no pieces.
      num_pieces: K, the special ones included.

    Returns:
      The ids to show, int32 [B, N]; which of them are hidden, bool [B, N]; the places of those that
      are predicted, int32 [B, P], and which of these mean something, bool [B, P].
    """
    place_key, fate_key, piece_key = jax.random.split(key, 3)
    pieces_BN = ids_BN >= num_special
    count_B1 = pieces_BN.sum(-1, keepdims=True)
    wanted_B1 = jnp.where(count_B1 > 0, jnp.maximum(jnp.round(share * count_B1), 1), 0)
    # The pieces first, in an order that is drawn; and where in it each place is.
    drawn_BN = jax.random.uniform(place_key, ids_BN.shape)
    order_BN = jnp.argsort(jnp.where(pieces_BN, drawn_BN, 2.0), axis=-1)
    predicted_BN = jnp.argsort(order_BN, axis=-1) < wanted_B1
    num_places = math.ceil(share * ids_BN.shape[1])
    fate_BN = jax.random.uniform(fate_key, ids_BN.shape)
    seen_K = jnp.cumsum(count_pieces(ids_BN, num_special, num_pieces) > 0)
    number_BN = jax.random.randint(piece_key, ids_BN.shape, 0, jnp.maximum(seen_K[-1], 1))
    others_BN = jnp.searchsorted(seen_K, number_BN, side="right").astype(jnp.int32)
    return (
        jnp.where(predicted_BN & (fate_BN >= 0.9), others_BN, ids_BN),
        predicted_BN & (fate_BN < 0.8),
        order_BN[:, :num_places],
        jnp.arange(num_places) < wanted_B1,
    )


def count_pieces(ids_BN: jax.Array, num_special: int, num_pieces: int) -> jax.Array:
    """How often each id is there, int32 [K]; 0 for the `num_special` first, which are no pieces."""
    return jnp.bincount(ids_BN.ravel(), length=num_pieces).at[:num_special].set(0)


def sample_distractors(key: jax.Array, mask_BN: jax.Array, num_distractors: int) -> jax.Array:
    """Draws, for each hidden frame, other hidden frames of the same utterance.

    Uniform, with replacement, never the frame itself.

    Args:
      key: random key.
      mask_BN: bool [B, N].
      num_distractors: M.

    Returns:
      int32 [B, N, M] frame indices. Rows of frames that are not hidden, and of utterances with
      fewer than two hidden frames, mean nothing: `contrastive_loss` leaves them out.
    """
    num_masked_B = mask_BN.sum(-1)
    # Positions of the hidden frames first, in order; and each hidden frame's place among them.
    order_BN = jnp.argsort(~mask_BN, axis=-1, stable=True)
    rank_BN = jnp.cumsum(mask_BN, axis=-1) - 1
    uniform_BNM = jax.random.uniform(key, (*mask_BN.shape, num_distractors))
    others_B11 = jnp.maximum(num_masked_B - 1, 1)[:, None, None]
    # A float32 just below 1 times others can round up to others: hence the minimum.
    drawn_BNM = jnp.minimum((uniform_BNM * others_B11).astype(jnp.int32), others_B11 - 1)
    drawn_BNM += drawn_BNM >= rank_BN[..., None]  # steps over the frame itself
    picked = jnp.take_along_axis(order_BN, drawn_BNM.reshape(mask_BN.shape[0], -1), axis=-1)
    return picked.reshape(drawn_BNM.shape).astype(jnp.int32)


def contrastive_loss(
    context_BNC: jax.Array,
    targets_BNC: jax.Array,
    distractors_BNM: jax.Array,
    mask_BN: jax.Array,
    *,
    temperature: float,
) -> jax.Array:
    """Finds a hidden frame's own target among distractors (w2v-BERT, section 3.3.1).

    -log softmax of cosine(context, target) / temperature over the target and the M distractors,
    averaged over hidden frames. Distractors with the target's own code stay in: leaving them
    out would make a codebook of one code free of loss.

    Args:
      context_BNC: predictions for all frames.
      targets_BNC: quantized vectors of all frames.
      distractors_BNM: int32 frame indices from `sample_distractors`.
      mask_BN: bool [B, N].
      temperature: κ.

    Returns:
      f32 scalar; log(M + 1) when the context says nothing. Zero if no utterance has two
      hidden frames.
    """
    # All pairs of one utterance are N² numbers; gathered vectors would be N·M·C.
    cosine_BNN = jnp.einsum("bnc,bmc->bnm", _unit(context_BNC), _unit(targets_BNC))
    positive_BN1 = jnp.diagonal(cosine_BNN, axis1=1, axis2=2)[..., None]
    negative_BNM = jnp.take_along_axis(cosine_BNN, distractors_BNM, axis=-1)
    logits_BNM = jnp.concatenate([positive_BN1, negative_BNM], axis=-1) / temperature
    loss_BN = -jax.nn.log_softmax(logits_BNM)[..., 0]
    return masked_mean(loss_BN, mask_BN & (mask_BN.sum(-1, keepdims=True) > 1))


def prediction_loss(logits_BNK: jax.Array, ids_BN: jax.Array, mask_BN: jax.Array) -> jax.Array:
    """Cross-entropy of what is masked, a mean in nats, f32.

    Frames' codes in w2v-BERT (section 3.3.2), word pieces in BERT (section 3.1).
    """
    log_probs_BNK = jax.nn.log_softmax(logits_BNK.astype(jnp.float32))
    picked_BN = jnp.take_along_axis(log_probs_BNK, ids_BN[..., None], axis=-1)[..., 0]
    return masked_mean(-picked_BN, mask_BN)


def perplexity(probs_K: jax.Array) -> jax.Array:
    """exp of the entropy of a distribution: 1 (one code) to K (all alike)."""
    # A floor far below any share that counts: at 0 the gradient of p log p is no number.
    return jnp.exp(-jnp.sum(probs_K * jnp.log(jnp.maximum(probs_K, 1e-30)), axis=-1))


def diversity_loss(probs_BNK: jax.Array) -> jax.Array:
    """Share of the codebook that the batch, on average, leaves unused.

    (K - perplexity of the mean distribution) / K, as wav2vec 2.0 is implemented: 0 when all
    codes are equally likely, 1 - 1/K when all frames choose the same.

    Args:
      probs_BNK: softmax of the quantizer's logits.

    Returns:
      f32 scalar.
    """
    return 1.0 - perplexity(probs_BNK.mean((0, 1))) / probs_BNK.shape[-1]


def masked_mean(x_BN: jax.Array, mask_BN: jax.Array) -> jax.Array:
    """Mean over the true places; 0 if there is none."""
    return jnp.sum(jnp.where(mask_BN, x_BN, 0.0)) / jnp.maximum(mask_BN.sum(), 1)


def _unit(x_BNC):
    x_BNC = x_BNC.astype(jnp.float32)
    return x_BNC * jax.lax.rsqrt(jnp.sum(jnp.square(x_BNC), axis=-1, keepdims=True) + 1e-8)
