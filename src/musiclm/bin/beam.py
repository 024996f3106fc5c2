"""Loads the Beam pipelines: by name, when needed, as the library does not depend on them."""

import importlib
import importlib.util
import types

from musiclm import errors


def load() -> types.ModuleType:
    """The module with the arguments and the runners of `musiclm tokenize` and `musiclm pack`.

    Raises:
      UserError: it, or Beam, is not installed.
    """
    try:
        if importlib.util.find_spec("apache_beam") is None:  # its import takes seconds
            raise ModuleNotFoundError("No module named 'apache_beam'")
        importlib.import_module("data_pipelines.shards")  # what the commands import when they run
        return importlib.import_module("data_pipelines.beam.cli")
    except ImportError as error:
        raise errors.UserError(
            f"the data pipelines cannot be loaded ({error}): run `pip install -e '.[beam]'` in a "
            "checkout of the repository"
        ) from error
