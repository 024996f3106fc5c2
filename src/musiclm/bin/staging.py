"""Output folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from musiclm import errors


def _make_folders(folder: pathlib.Path, created: list[pathlib.Path]) -> None:
    """Creates `folder` with its parents; puts each that was not there before the others."""
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(exist_ok=True)
            created.insert(0, path)


@contextlib.contextmanager
def staged(folder: str | os.PathLike[str], *, last: str) -> Iterator[pathlib.Path]:
    """Yields an empty folder; its files move into `folder` if the block ends without an error.

    Whether `folder` can be written is known before the block starts, so that nobody waits minutes
    for a result that has no place to go. After an error, an interruption included, the files and
    the folders that this call created are gone.

    Args:
      folder: where the files shall be; created with its parents. Files with the same names are
        replaced, others are left alone.
      last: name of the file that moves last, the one that says that the others are there.

    Raises:
      UserError: `folder` cannot be created or written.
    """
    folder = pathlib.Path(folder)
    created: list[pathlib.Path] = []
    staging = None
    done = False
    try:
        try:
            _make_folders(folder, created)
            # In the folder itself: a rename is atomic only within one file system.
            staging = pathlib.Path(tempfile.mkdtemp(prefix=".musiclm-", dir=folder))
        except OSError as error:
            raise errors.UserError(
                f"cannot write to {str(folder)!r} ({error.strerror}): choose another folder "
                "with --out"
            ) from error
        try:
            yield staging
            names = sorted((path.name for path in staging.iterdir()), key=lambda n: (n == last, n))
            for name in names:
                if (folder / name).is_dir():
                    raise errors.UserError(
                        f"{str(folder / name)!r} is a folder where a file must go: move it away "
                        "or choose another folder with --out"
                    )
            for name in names:
                os.replace(staging / name, folder / name)
        except OSError as error:
            raise errors.UserError(
                f"writing to {str(folder)!r} failed ({error.strerror or error}): make room there "
                "or choose another folder with --out"
            ) from error
        done = True
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not done:
            with contextlib.suppress(OSError):  # not empty: somebody else put something there
                for path in created:
                    path.rmdir()
