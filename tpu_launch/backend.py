"""What a back end is, and the check that a job fits it."""

import dataclasses
import enum
import re
from collections.abc import Callable

from tpu_launch.errors import JobError
from tpu_launch.job import MOUNTS, Job


class Place(enum.Enum):
    """Where data and checkpoints can lie: how a name of that kind starts, and what it is called."""

    BUCKET = rf"(gs:/|{MOUNTS})/[\w.-]+(/|$)", "a bucket's gs://NAME"
    ABSOLUTE_PATH = r"/", "an absolute path"
    PATH = r"(?!\w+://)", "a path"

    def __init__(self, pattern: str, words: str):
        self.pattern, self.words = pattern, words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """An engine that runs jobs.

    Attributes:
      summary: what it is, for people.
      render: the text that the engine takes: a manifest or a script.
      submit: the program that takes this text on its standard input.
      kinds: the kinds of chips that it can run (`Chip.kind`).
      needs: fields of the description that it can't do without, as `cluster.zone`.
      places: what data and checkpoints can lie in; buckets where the hosts share no file system.
    """

    summary: str
    render: Callable[[Job], str]
    submit: tuple[str, ...]
    kinds: frozenset[str]
    needs: tuple[str, ...] = ()
    places: Place = Place.BUCKET

    def __call__(self, job: Job) -> str:
        """Renders a job.

        Args:
          job: its description.

        Returns:
          What the engine takes.

        Raises:
          JobError: this engine can't run the job.
        """
        kind = job.cluster.slice.spec.kind
        if kind not in self.kinds:
            raise JobError(
                f"cluster.accelerator = {job.cluster.accelerator!r} is a {kind}: this back end "
                f"runs {' and '.join(sorted(self.kinds))}, choose another with --backend"
            )
        for field in self.needs:
            owner, name = (job.cluster, field[8:]) if field.startswith("cluster.") else (job, field)
            if not getattr(owner, name):
                raise JobError(f"{field} is missing: this back end needs it, add it to the job")
        for field, place in {**job.data, "workdir": job.workdir}.items():
            if not re.match(self.places.pattern, place):
                raise JobError(
                    f"{field} = {place!r} is out of reach for this back end: "
                    f"give {self.places.words}"
                )
        return self.render(job)
