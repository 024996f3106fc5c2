"""Runs one fit on frozen models or on captions, as its gin file says.

python -m musiclm.bin.fit --gin_file=gin/train/mulan_quantizer_mini.gin
"""

from collections.abc import Callable

from absl import app, flags

from musiclm.bin import compilation_cache

_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "what to fit, and how", required=True)
_GIN_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "overrides of the gin file")


def fit(what: Callable[[], None]) -> None:
    """Runs `what`, a fully bound function such as `@quantizers.fit_semantic_clusters`."""
    what()


def main(argv: list[str]) -> None:
    """Parses the configuration and runs what it names."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: give --gin_file=FILE")
    compilation_cache.enable()
    import gin

    from musiclm.bin import fit as this  # gin registers by module, and this one runs as __main__

    gin.parse_config_files_and_bindings(_GIN_FILE.value, _GIN_BINDINGS.value)
    gin.get_configurable(this.fit)()


if __name__ == "__main__":
    app.run(main)
