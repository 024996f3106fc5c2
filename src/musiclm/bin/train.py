"""Trains one model, as its gin file says; start it again to resume.

python -m musiclm.bin.train --gin_file=gin/train/soundstream_mini.gin --gin_bindings='RUN="runs/x"'
"""

import sys

from absl import app, flags, logging

from musiclm import errors
from musiclm.bin import compilation_cache

_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "what to train, and how", required=True)
_GIN_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "overrides of the gin file")


def main(argv: list[str]) -> None:
    """Parses the configuration and hands over to the loop."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: give --gin_file=FILE")
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every step of a save
    compilation_cache.enable()
    import gin

    from musiclm.training import health, loop

    gin.parse_config_files_and_bindings(_GIN_FILE.value, _GIN_BINDINGS.value)
    try:
        gin.get_configurable(loop.train)()
    except health.HealthError as error:
        sys.exit(f"musiclm.bin.train: stopped at {error}")
    except errors.UserError as error:
        # Its first line: gin appends where in the configuration it happened.
        print(f"musiclm.bin.train: error: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
