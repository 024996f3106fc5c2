"""What a study's gin file asks for: its runs, all checked before the first is made.

Reading the file imports what it names, TensorFlow too; `musiclm ablate` does it in a process that
ends.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Any

from musiclm import errors
from musiclm.bin import configuration
from musiclm.evaluation import ablation


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the runs of a study are.

    Attributes:
      command: of `musiclm`, that makes one.
      function: whose arguments decide it, "package.module:name"; one of them is `seed`.
      places: its arguments that say where it writes: they decide nothing, and a plan does without.
      last: of its files the one that is written last, whole.
    """

    command: str
    function: str
    places: tuple[str, ...]
    last: str

    def binding(self, argument: str, value: Any) -> str:
        """Binds an argument of the function."""
        module, _, name = self.function.partition(":")
        return f"{module.rpartition('.')[2]}.{name}.{argument}={value!r}"

    @property
    def nowhere(self) -> list[str]:
        """Bindings of no places."""
        return [self.binding(place, "") for place in self.places]


TRAINING = Kind(
    command="train",
    function="musiclm.training.loop:train",
    places=("workdir", "component"),
    last="model.safetensors",
)
MEASURING = Kind(
    command="fit",
    function="musiclm.bin.measuring:measure",
    places=("workdir", "cache"),
    last="metrics.jsonl",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a study.

    Attributes:
      kind, variant, seed: what it is.
      bindings: those of the variant and the seed, which follow the study's own.
      configuration: all that decides it, JSON-ready.
    """

    kind: Kind
    variant: str
    seed: int
    bindings: tuple[str, ...]
    configuration: dict[str, Any]

    @property
    def digest(self) -> str:
        """Names the run: equal for runs that come to the same, in whatever study."""
        told = json.dumps(self.configuration, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def plan(
    gin_files: Sequence[str], gin_bindings: Sequence[str], num_seeds: int
) -> tuple[ablation.Study, list[Run]]:
    """The study of a gin file, and its runs in the order in which they are best made.

    Args:
      gin_files, gin_bindings: of the study: a run of `musiclm train`, or a measurement as
        `measuring` has them, and an `ablation.Study`.
      num_seeds: 0 up to one less.

    Raises:
      UserError: something can't be read or made; what is a variant's fault names it.
    """
    configuration.parse(gin_files, gin_bindings, whole=False)
    kind = MEASURING if configuration.binds(MEASURING.function) else TRAINING
    configuration.parse(gin_files, [*gin_bindings, *kind.nowhere])
    try:
        with configuration.mistakes_told():
            study = ablation.Study(**configuration.resolve(ablation.Study))
    except errors.UserError as error:
        raise errors.UserError(f"the ablation.Study of {gin_files[0]}: {error}") from error
    variants = []
    for variant in study.variants:
        try:
            bindings = [*gin_bindings, *variant.overrides, *kind.nowhere]
            configuration.parse(gin_files, bindings)
            variants.append(_decided(study, kind))
        except errors.UserError as error:
            raise errors.UserError(f"variant {variant.name!r}: {error}") from error
    # All variants of a seed before the next seed: half a study compares all of them.
    return study, [
        Run(
            kind,
            variant.name,
            seed,
            (*variant.overrides, kind.binding("seed", seed)),
            decided | {"seed": seed},
        )
        for seed in range(num_seeds)
        for variant, decided in zip(study.variants, variants, strict=True)
    ]


def _decided(study: ablation.Study, kind: Kind) -> dict[str, Any]:
    """All that decides the runs of the configuration but the seed, once they are found in order."""
    function = pkgutil.resolve_name(kind.function)
    arguments = configuration.resolve(function)
    if kind == TRAINING:
        figures, data = _evaluated(arguments), arguments.get("data", "")
    else:
        with configuration.mistakes_told():
            figures, data = arguments["measurement"].figures, arguments["measurement"].data()
        # A mistake in what it trains must not show after hours either.
        train = pkgutil.resolve_name(TRAINING.function)
        configuration.check_references(train, given=(*TRAINING.places, "seed"))
    found = {f"eval/{name}" for name in figures}
    for metric in study.metrics:
        if metric.name not in found:
            raise errors.UserError(
                f"Metric.name is {metric.name!r}: its evaluations have {', '.join(sorted(found))}"
            )
    described = configuration.described(function)
    decided = {name: value for name, value in described.items() if name not in kind.places}
    return _with_contents(decided | {"data": data})


def _evaluated(arguments: dict[str, Any]) -> Iterable[str]:
    """What an evaluation finds, by tracing one: a misspelt metric must not show after hours."""
    import jax
    import jax.numpy as jnp

    if not arguments.get("eval_dataset"):
        raise errors.UserError("loop.train.eval_dataset is not bound: a study compares evaluations")
    task = arguments["task"]

    def evaluate():
        shapes = task.batch_spec(arguments["batch_size"])
        batch = {name: jnp.zeros(array.shape, array.dtype) for name, array in shapes.items()}
        key = jax.random.key(0)
        return task.evaluate(task.init(key, batch), batch, key)

    with configuration.mistakes_told():
        return jax.eval_shape(evaluate)


def _with_contents(value: Any) -> Any:
    """The same with a digest in place of every file that is named: its content decides a run.

    Of a folder it takes the whole path; what is in those of data sets, `loop.train.data` tells.
    """
    if isinstance(value, dict):
        return {name: _with_contents(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_contents(item) for item in value]
    if not isinstance(value, str):
        return value
    for path in (value, f"{value}.safetensors"):  # components are named without
        if os.path.isfile(path):
            return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    return os.path.realpath(value) if "/" in value and os.path.isdir(value) else value
