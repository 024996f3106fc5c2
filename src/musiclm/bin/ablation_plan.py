"""What a study's gin file asks for: its runs, all checked before the first is trained.

Reading the file imports what it names, TensorFlow too; `musiclm ablate` does it in a process that
ends.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm import errors
from musiclm.bin import configuration
from musiclm.evaluation import ablation

# Arguments that say where a run writes: they decide nothing in it, and a plan does without.
_PLACES = ("workdir", "component")
_NOWHERE = [f"loop.train.{name} = ''" for name in _PLACES]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of a study.

    Attributes:
      variant, seed: what it is.
      bindings: those of the variant and the seed, which follow the study's own.
      configuration: all that decides it, JSON-ready.
    """

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
    """The study of a gin file, and its runs in the order in which they are best trained.

    Args:
      gin_files, gin_bindings: of the study: a run of `musiclm train`, and an `ablation.Study`.
      num_seeds: 0 up to one less.

    Raises:
      UserError: something can't be read or made; what is a variant's fault names it.
    """
    configuration.parse(gin_files, [*gin_bindings, *_NOWHERE])
    try:
        with configuration.mistakes_told():
            study = ablation.Study(**configuration.resolve(ablation.Study))
    except errors.UserError as error:
        raise errors.UserError(f"the ablation.Study of {gin_files[-1]}: {error}") from error
    variants = []
    for variant in study.variants:
        try:
            variants.append(_decided(study, variant, gin_files, gin_bindings))
        except errors.UserError as error:
            raise errors.UserError(f"variant {variant.name!r}: {error}") from error
    # All variants of a seed before the next seed: half a study compares all of them.
    return study, [
        Run(
            variant.name,
            seed,
            (*variant.overrides, f"loop.train.seed={seed}"),
            decided | {"seed": seed},
        )
        for seed in range(num_seeds)
        for variant, decided in zip(study.variants, variants, strict=True)
    ]


def _decided(
    study: ablation.Study,
    variant: ablation.Variant,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
) -> dict[str, Any]:
    """All that decides a variant's runs but the seed."""
    from musiclm.training import loop

    configuration.parse(gin_files, [*gin_bindings, *variant.overrides, *_NOWHERE])
    arguments = configuration.resolve(loop.train)
    _check_metrics(study, arguments)
    described = configuration.described(loop.train)
    decided = {name: value for name, value in described.items() if name not in _PLACES}
    return _with_contents(decided | {"data": arguments.get("data", "")})


def _check_metrics(study: ablation.Study, arguments: dict[str, Any]) -> None:
    """Traces an evaluation: a misspelt metric must not be found after hours of training."""
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
        found = {f"eval/{name}" for name in jax.eval_shape(evaluate)}
    for metric in study.metrics:
        if metric.name not in found:
            raise errors.UserError(
                f"Metric.name is {metric.name!r}: its evaluations have {', '.join(sorted(found))}"
            )


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
