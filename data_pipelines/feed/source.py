"""Rows as seqio takes them: a data source a data set, and mixtures that are exact too.

An element of these data sets is a whole host batch, made in NumPy: seqio's way of one example at a
time through tf.data costs several times as much. The streams have no end, whatever `num_epochs` is.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from data_pipelines.feed import rows
from data_pipelines.feed.examples import Batch, Examples
from musiclm import errors

tf.config.set_visible_devices([], "GPU")  # JAX has the accelerators

# What a person can mend and TensorFlow was told, by its text: it makes an error of its own of it.
_told: dict[str, errors.UserError] = {}


@dataclasses.dataclass(frozen=True)
class Place(seqio.ShardInfo):
    """Which rows of the stream to serve: seqio's "shard `index` of `num_shards`", and from where.

    Attributes:
      places: all that this host serves, of `num_shards`; `index` is the first.
      batch_size: rows of all hosts in one step.
      start_step: where the stream is entered.
      pattern: of the mixture whose component this is.
      component: its place in the pattern.
    """

    places: tuple[int, ...]
    batch_size: int
    start_step: int = 0
    pattern: rows.Pattern | None = None
    component: int = 0

    @classmethod
    def of(cls, shard_info: seqio.ShardInfo | None) -> "Place":
        """A place as it is; of plain shards, one row each a step."""
        if isinstance(shard_info, Place):
            return shard_info
        index, count = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        return cls(index=index, num_shards=count, places=(index,), batch_size=count)

    def rows(self, step: int) -> np.ndarray:
        """The host's global rows at a step, counted from the start."""
        return rows.rows_of(
            step,
            batch_size=self.batch_size,
            start_step=self.start_step,
            places=self.places,
            num_places=self.num_shards,
        )

    def component_rows(self, step: int, *, seed: int) -> np.ndarray:
        """Those of them that are the component's, as rows of its own stream."""
        if self.pattern is None:
            return self.rows(step)
        components_R, own_R = self.pattern.deal(self.rows(step), seed=seed)
        return own_R[components_R == self.component]


def steps(
    make: Callable[[int], Batch], shapes: Mapping[str, tuple[int | None, ...]], dtypes: Mapping
) -> tf.data.Dataset:
    """`make(0)`, `make(1)` … as a data set."""
    names = sorted(shapes)

    def make_listed(step):
        try:
            made = make(int(step))
        except errors.UserError as error:
            _told[str(error)] = error
            raise
        return [made[name] for name in names]

    def arrays(step):
        made = tf.numpy_function(make_listed, [step], [tf.as_dtype(dtypes[name]) for name in names])
        for name, array in zip(names, made, strict=True):
            array.set_shape(shapes[name])
        return dict(zip(names, made, strict=True))

    return tf.data.Dataset.counter().map(arrays)


@contextlib.contextmanager
def told_without_tensorflow() -> Iterator[None]:
    """Raises a `UserError` of `steps` as it was, in place of what TensorFlow made of it."""
    try:
        yield
    except tf.errors.OpError as error:
        for text, cause in _told.items():
            if text in error.message:
                raise cause from error
        raise


class RowSource(seqio.DataSource):
    """The rows of a corpus's data sets, one data set a split."""

    def __init__(self, splits: Mapping[str, Examples]):
        """Takes the examples of each split."""
        # No number of examples: seqio would keep a stream of few in memory, and it has no end.
        super().__init__(
            splits=tuple(splits), caching_permitted=False, performs_internal_shuffling=True
        )
        self.examples = dict(splits)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Any number of hosts."""
        return True

    def list_shards(self, split: str) -> list[str]:
        """The files that are read for a split."""
        records = self.examples[split].records
        return [shard.name for name in records.streams for shard in records.data_set.shards[name]]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_,
    ) -> tf.data.Dataset:
        """Host batches from a place on; see `Place`.

        Raises:
          shards.ShardError: a shard is not as its `dataset.json` says.
        """
        if split not in self.examples:
            raise errors.UserError(f"split is {split!r}: this corpus has {sorted(self.examples)}")
        examples, place, seed = self.examples[split], Place.of(shard_info), seed or 0
        place.rows(0)  # told before the checksums' minutes if the places don't divide the batch
        # All splits: a run must not find at its first evaluation that it can't go on.
        for part in self.examples.values():
            part.records.check(place.places, place.num_shards)
        # Each component draws for itself: their rows have the same numbers.
        draws = int(rows.hash64(seed, rows.Purpose.COMPONENT, place.component)[0] >> np.uint64(1))

        def make(step: int) -> Batch:
            own_R = place.component_rows(step, seed=seed)
            if not len(own_R):  # a small share of a small batch
                return {
                    name: np.empty((0, *shape), examples.dtypes[name])
                    for name, shape in examples.shapes.items()
                }
            return examples.make(own_R, seed=draws, shuffle=shuffle)

        shapes = {name: (None, *shape) for name, shape in examples.shapes.items()}
        return steps(make, shapes, examples.dtypes)


class RowMixture(seqio.Mixture):
    """Tasks over `RowSource`s, mixed row by row: which task a row is of depends on the row alone.

    A stock mixture draws its tasks in the order in which a process asks for examples, so that what
    it gives depends on the number of hosts, and can't be entered in the middle.
    """

    def get_dataset(
        self,
        sequence_length: Mapping[str, int] | None = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        num_epochs: int | None = None,
        **options,
    ) -> tf.data.Dataset:
        """Host batches of all tasks from a place on; see `Place`."""
        tasks = [task for task in self.tasks if split in task.splits]
        if not tasks:
            raise errors.UserError(f"split is {split!r}: no task of {self.name} has it")
        pattern = rows.Pattern.of([self.get_rate(task) for task in tasks])
        place = dataclasses.replace(Place.of(shard_info), pattern=pattern)
        parts = tuple(
            self.get_task_dataset(
                task,
                set(self.output_features),
                sequence_length=sequence_length,
                split=split,
                use_cached=use_cached,
                shuffle=shuffle,
                seed=seed,
                shard_info=dataclasses.replace(place, component=component),
                num_epochs=num_epochs,
                trim_output_features=options.get("trim_output_features", True),
            )
            for component, task in enumerate(tasks)
        )

        def order(step: int) -> Batch:
            components_R, _ = pattern.deal(place.rows(step), seed=seed or 0)
            # Where each row lies once the tasks' rows are one after another.
            return {"order": np.argsort(np.argsort(components_R, kind="stable"), kind="stable")}

        orders = steps(order, {"order": (None,)}, {"order": "int64"})
        return tf.data.Dataset.zip(orders, *parts).map(_merge)


def _merge(order, *parts):
    return {
        name: tf.gather(tf.concat([part[name] for part in parts], axis=0), order["order"])
        for name in parts[0]
    }
