"""Runs one fit on frozen models or on captions, as its gin file says.

python -m musiclm.bin.fit --gin_file=gin/train/mini/mulan_quantizer.gin --gin_bindings='…'
"""

import sys
from collections.abc import Callable

from absl import app, flags

from musiclm import errors
from musiclm.bin import compilation_cache


def fit(what: Callable[[], None]) -> None:
    """Runs `what`, a fully bound function such as `@quantizers.fit_semantic_clusters`."""
    what()


def main(argv: list[str]) -> None:
    """Parses the configuration and runs what it names."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: give --gin_file=FILE")
    compilation_cache.enable()
    import gin

    # A gin file names this function by its module, which runs as __main__ here.
    from musiclm.bin.fit import fit

    gin.parse_config_files_and_bindings(flags.FLAGS.gin_file, flags.FLAGS.gin_bindings)
    try:
        gin.get_configurable(fit)()
    except errors.UserError as error:
        # Its first line: gin appends where in the configuration it happened.
        print(f"musiclm.bin.fit: error: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.DEFINE_multi_string("gin_file", None, "what to fit, and how", required=True)
    flags.DEFINE_multi_string("gin_bindings", [], "overrides of the gin file")
    app.run(main)
