"""What semantic tokens know of music, with nothing trained on them.

Three questions: how much a token tells of what is known of its frame (`pnmi`, `purity`), whether
phrases of one class are nearer to each other than to those of another (`abx`), and whether a stage
finds music likelier in its own order than shuffled (`spot_the_real`).

Shapes: N clips or phrases, T frames, Z tokens that occur, Y classes, K clusters (or shuffled
versions of a phrase), D width of centroids, P phrases that one is compared with, S segments;
A and B as in ABX.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.special

from musiclm.evaluation import bootstrap, threads

_GRID = 2**24  # steps between angles of 0 and 1


def pnmi(tokens_NT: np.ndarray, classes: Sequence | np.ndarray) -> float:
    """Phone-normalised mutual information (HuBERT, arXiv 2106.07447, section IV-E).

    I(z; y) / H(y) over all frames, z the token and y the class: the share of the uncertainty about
    the class that the token takes away, 0 to 1. Divided by the entropy of the classes, not of the
    tokens, it compares tokenizers on one set of clips. It rises with the number of clusters, and
    much of it is chance where clips are few: see `pnmi_by_chance`.

    Args:
      tokens_NT: semantic tokens.
      classes: of any type that sorts; [N] for an attribute of the clip, which all its frames
        have, or [N, T].

    Raises:
      ValueError: the shapes don't fit, there is no frame, or there is a single class.
    """
    _, _, count_ZY = _count(tokens_NT, classes)
    joint_ZY = count_ZY / count_ZY.sum()
    entropy = scipy.special.entr(joint_ZY.sum(axis=0)).sum()
    given_token_ZY = count_ZY / count_ZY.sum(axis=1, keepdims=True)
    remaining = -scipy.special.xlogy(joint_ZY, given_token_ZY).sum()
    return max(0.0, float(1 - remaining / entropy))


def pnmi_by_chance(
    tokens_NT: np.ndarray, classes: Sequence | np.ndarray, *, deals: int = 20, seed: int = 0
) -> float:
    """What `pnmi` would be if tokens told nothing: its mean over random deals of classes to clips.

    Far above 0 where clips are few, since a cluster that few clips use tells the clip, and so the
    class. Classes of frames are dealt out a clip at a time.

    Args:
      tokens_NT: semantic tokens.
      classes: [N] or [N, T], see `pnmi`.
      deals: how many to take the mean of.
      seed: of the deals.

    Raises:
      ValueError: as in `pnmi`.
    """
    rng = np.random.default_rng(seed)
    return float(np.mean([pnmi(tokens_NT, rng.permutation(classes)) for _ in range(deals)]))


def purity(tokens_NT: np.ndarray, classes: Sequence | np.ndarray) -> bootstrap.Estimate:
    """Share of frames whose class is the commonest of their token: HuBERT's phone purity.

    Divided by the number of frames; a single cluster gets the share of the commonest class, and a
    cluster a frame gets 1. The interval is over clips; what each token stands for stays.

    Args:
      tokens_NT: semantic tokens.
      classes: [N] or [N, T], see `pnmi`.

    Raises:
      ValueError: as in `pnmi`.
    """
    token_NT, class_NT, count_ZY = _count(tokens_NT, classes)
    return bootstrap.mean((count_ZY.argmax(axis=1)[token_NT] == class_NT).mean(axis=1))


def _count(
    tokens_NT: np.ndarray, classes: Sequence | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and classes of all frames by number, and how many frames have both, int64 [Z, Y]."""
    tokens_NT, classes = _phrases(tokens_NT), np.asarray(classes)
    if classes.ndim == 1 and len(classes) == len(tokens_NT):
        classes = np.repeat(classes[:, None], tokens_NT.shape[1], axis=1)
    if classes.shape != tokens_NT.shape:
        raise ValueError(
            f"classes of shape {classes.shape} for tokens of shape {tokens_NT.shape}: give one a "
            "clip or one a frame"
        )
    tokens_Z, token = np.unique(tokens_NT, return_inverse=True)
    classes_Y, class_ = np.unique(classes, return_inverse=True)
    if len(classes_Y) < 2:
        raise ValueError(f"a single class, {classes_Y[0]}: give two or more, to be told apart")
    cells = token.ravel() * len(classes_Y) + class_.ravel()
    count = np.bincount(cells, minlength=len(tokens_Z) * len(classes_Y))
    shape = tokens_NT.shape
    return token.reshape(shape), class_.reshape(shape), count.reshape(len(tokens_Z), -1)


def abx(
    tokens_NT: np.ndarray,
    classes_N: Sequence | np.ndarray,
    centroids_KD: np.ndarray,
    *,
    clips_per_class: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> bootstrap.Estimate:
    """How often a phrase X is nearer to B, of another class, than to A, of its own: 0 to 1.

    The test of the Zero Resource Speech Challenge and of Libri-light (arXiv 1912.07875), over all
    triples of the clips or of a sample of them. Chance, and a tie, is one half. All ordered pairs
    of classes weigh the same, so that nothing changes as A and B change their parts.

    Two phrases are as far apart as `alignment_distances` says, by the `angles` of the clusters: as
    in those challenges an angle and no Euclidean distance, because it is bounded, and a few
    far-off clusters can't decide a phrase.

    The interval is over X; the phrases that it is compared with stay.

    Args:
      tokens_NT: semantic tokens.
      classes_N: of any type that sorts; two clips or more of each class.
      centroids_KD: of the clusters, as the tokenizer has them (standardised, so that angles are
        those about the mean of all frames).
      clips_per_class: take at most so many of each class, at random; None for all. Time grows with
        the square of the clips.
      seed: of that draw.
      progress: called with 1 after each clip.

    Raises:
      ValueError: the shapes don't fit, a token is no cluster, or there are too few classes, or
        too few clips of one.
    """
    tokens_NT, classes_N = _phrases(tokens_NT), np.asarray(classes_N)
    if classes_N.shape != tokens_NT.shape[:1]:
        raise ValueError(f"classes of shape {classes_N.shape}: give one a clip, {len(tokens_NT)}")
    if tokens_NT.min() < 0 or tokens_NT.max() >= len(centroids_KD):
        raise ValueError(
            f"tokens from {tokens_NT.min()} to {tokens_NT.max()} of {len(centroids_KD)} clusters: "
            "give the centroids of the tokenizer that made them"
        )
    if clips_per_class is not None:
        if clips_per_class < 2:
            raise ValueError(f"clips_per_class is {clips_per_class}: give 2 or more, for A and X")
        chosen = _draw(classes_N, clips_per_class, np.random.default_rng(seed))
        tokens_NT, classes_N = tokens_NT[chosen], classes_N[chosen]
    classes_Y, class_N, count_Y = np.unique(classes_N, return_inverse=True, return_counts=True)
    if len(classes_Y) < 2 or count_Y.min() < 2:
        counts = dict(zip(classes_Y.tolist(), count_Y.tolist(), strict=True))
        raise ValueError(f"clips by class: {counts}; give two classes or more, two clips of each")
    angle_KK = angles(centroids_KD)
    distance_NN = np.zeros((len(tokens_NT), len(tokens_NT)))

    def to_later(i: int) -> np.ndarray:
        return alignment_distances(tokens_NT[i], tokens_NT[i + 1 :], angle_KK)

    for i, distance_P in enumerate(threads.each(to_later, range(len(tokens_NT)), progress)):
        distance_NN[i, i + 1 :] = distance_NN[i + 1 :, i] = distance_P
    error_N = _errors(distance_NN, class_N)
    # Classes weigh the same. A mean over clips, as the bootstrap takes it, would give larger ones
    # more: deviations from the mean of the own class are scaled instead.
    mean_Y = np.bincount(class_N, error_N) / count_Y
    weight_N = len(class_N) / (len(classes_Y) * count_Y[class_N])
    return bootstrap.mean(mean_Y.mean() + weight_N * (error_N - mean_Y[class_N]))


def _draw(classes_N: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Which clips to keep, in order: at most so many of each class."""
    order_N = rng.permutation(len(classes_N))
    kept = [order_N[classes_N[order_N] == name][:most] for name in np.unique(classes_N)]
    return np.sort(np.concatenate(kept))


def _errors(distance_NN: np.ndarray, class_N: np.ndarray) -> np.ndarray:
    """The error of each clip as X, over all A and B, other classes weighing the same; f64 [N]."""
    count_Y = np.bincount(class_N)
    error_N = np.empty(len(class_N))
    for x, distance_N in enumerate(distance_NN):
        others_N = class_N != class_N[x]
        own_N = ~others_N
        own_N[x] = False
        to_a_A1, to_b_B = distance_N[own_N, None], distance_N[others_N]
        error_B = ((to_a_A1 > to_b_B) + 0.5 * (to_a_A1 == to_b_B)).mean(axis=0)
        error_Y = np.bincount(class_N[others_N], error_B, minlength=len(count_Y)) / count_Y
        error_N[x] = error_Y.sum() / (len(count_Y) - 1)
    return error_N


def angles(centroids_KD: np.ndarray) -> np.ndarray:
    """The angle between any two clusters, f64 [K, K]: 0 for one direction, 1 for the opposite.

    Raises:
      ValueError: a centroid is zero or not finite, and has no direction.
    """
    centroids_KD = np.asarray(centroids_KD, np.float64)
    length_K1 = np.linalg.norm(centroids_KD, axis=1, keepdims=True)
    if not np.isfinite(length_K1).all() or not length_K1.all():
        raise ValueError("a centroid is zero or not finite and has no direction: cluster anew")
    unit_KD = centroids_KD / length_K1
    angle_KK = np.arccos(np.clip(unit_KD @ unit_KD.T, -1, 1)) / np.pi
    np.fill_diagonal(angle_KK, 0.0)
    return angle_KK


def alignment_distances(
    one_T: np.ndarray, other_PT: np.ndarray, angle_KK: np.ndarray
) -> np.ndarray:
    """Mean angle along the dynamic time warping of a phrase and each of some others, f64 [P].

    The path goes from the first frames to the last in steps of one frame of either or of both. Of
    all paths it has the least sum of angles, and of these the fewest steps.

    Args:
      one_T: tokens of a phrase.
      other_PT: tokens of others, of the same length.
      angle_KK: see `angles`.
    """
    # A path's sum, in whole steps of a grid, times the longest path, plus its length: one integer
    # holds both, the least is the least sum and then the shortest, and ties are exact.
    length, num_clusters = len(one_T), len(angle_KK)
    longest = 2 * length
    step_TK = np.rint(angle_KK[one_T] * _GRID).astype(np.int64) * longest + 1
    rows_T1 = np.arange(length)[:, None] * num_clusters
    backwards_TP = np.ascontiguousarray(other_PT.T[::-1])
    outside = np.iinfo(np.int64).max // 2
    # Cells (i, diagonal - i) of all pairs at once, in row i + 1; the rows around them lie outside,
    # but for the way in. Three diagonals take turns, so that none is allocated anew.
    here, last, before_last = np.full((3, length + 2, len(other_PT)), outside)
    before_last[0] = 0
    for diagonal in range(2 * length - 1):
        first, end = max(0, diagonal - length + 1), min(diagonal + 1, length)
        cells = here[first + 1 : end + 1]
        np.minimum(last[first:end], last[first + 1 : end + 1], out=cells)
        np.minimum(cells, before_last[first:end], out=cells)
        tokens = backwards_TP[length - 1 - diagonal + first : length - 1 - diagonal + end]
        cells += step_TK.take(rows_T1[first:end] + tokens)
        here[first] = here[end + 1] = outside
        here, last, before_last = before_last, here, last
    total_P, steps_P = np.divmod(last[length], longest)
    return total_P / (steps_P * _GRID)


def spot_the_real(
    log_likelihood_real_N: np.ndarray, log_likelihood_shuffled_NK: np.ndarray
) -> bootstrap.Estimate:
    """How often a stage finds a phrase likelier than the same phrase shuffled in time.

    After the Zero Resource Speech Challenge's sWUGGY (arXiv 2011.11588), whose foils are words
    that don't exist. Chance, and a tie, is one half. The interval is over phrases.

    Args:
      log_likelihood_real_N: of phrases in their own order. The sum over tokens or their mean:
        it is the same here, as both versions have one length.
      log_likelihood_shuffled_NK: of versions of each, see `shuffle_phrases`.

    Raises:
      ValueError: the shapes don't fit, there is no phrase or no version, or a value is NaN.
    """
    real_N1 = np.asarray(log_likelihood_real_N, np.float64)[..., None]
    shuffled_NK = np.asarray(log_likelihood_shuffled_NK, np.float64)
    if real_N1.ndim != 2 or shuffled_NK.shape[:-1] != real_N1.shape[:1] or not shuffled_NK.size:
        raise ValueError(
            f"log-likelihoods of shape {real_N1.shape[:-1]} and {shuffled_NK.shape}: give [N] and "
            "[N, K], K versions of each phrase"
        )
    if np.isnan(real_N1).any() or np.isnan(shuffled_NK).any():
        raise ValueError("a log-likelihood is NaN: check the stage")
    better_NK = (real_N1 > shuffled_NK) + 0.5 * (real_N1 == shuffled_NK)
    return bootstrap.mean(better_NK.mean(axis=1))


def shuffle_phrases(tokens_NT: np.ndarray, segment: int, rng: np.random.Generator) -> np.ndarray:
    """Phrases whose segments come in another order: foils for `spot_the_real`.

    Orders are drawn anew for each phrase until its tokens differ from what they were; only a
    phrase whose segments are all alike stays as it is (and ties with itself).

    Args:
      tokens_NT: semantic tokens.
      segment: frames that stay together.
      rng: draws the orders.

    Returns:
      [N, T], of the same type.

    Raises:
      ValueError: the phrases don't divide into two segments or more.
    """
    tokens_NT = _phrases(tokens_NT)
    length = tokens_NT.shape[1]
    if segment < 1 or length % segment or length < 2 * segment:
        raise ValueError(
            f"segments of {segment} frames in phrases of {length}: give phrases of two segments, "
            "three or so on"
        )
    real = tokens_NT.reshape(len(tokens_NT), -1, segment)
    shuffled = real.copy()
    same_N = np.flatnonzero((real != real[:, :1]).any(axis=(1, 2)))
    while len(same_N):
        order_NS = rng.permuted(np.tile(np.arange(real.shape[1]), (len(same_N), 1)), axis=1)
        shuffled[same_N] = np.take_along_axis(real[same_N], order_NS[:, :, None], axis=1)
        same_N = same_N[(shuffled[same_N] == real[same_N]).all(axis=(1, 2))]
    return shuffled.reshape(tokens_NT.shape)


def _phrases(tokens_NT: np.ndarray) -> np.ndarray:
    tokens_NT = np.asarray(tokens_NT)
    if tokens_NT.ndim != 2 or not tokens_NT.size or tokens_NT.dtype.kind not in "iu":
        raise ValueError(
            f"tokens of shape {tokens_NT.shape} and type {tokens_NT.dtype}: give whole numbers "
            "[N, T], one row a clip"
        )
    return tokens_NT
