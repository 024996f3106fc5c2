"""Where compiled programs are kept between runs."""

import os
import pathlib


def _folder() -> pathlib.Path | None:
    """The cache folder, made if need be; None where nothing can be written."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        # The XDG specification: a relative path is to be ignored.
        base = (
            pathlib.Path(root) if root and os.path.isabs(root) else pathlib.Path.home() / ".cache"
        )
        folder = base / "musiclm" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home at all
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def enable() -> pathlib.Path | None:
    """Keeps compiled programs in ~/.cache/musiclm/jax (or below $XDG_CACHE_HOME).

    Works through JAX's own environment variables, hence must run before JAX is imported, and
    gives way to those that the person has set. Without a writable home the program runs all the
    same and compiles anew each time.

    Returns:
      The folder in use, or None.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    folder = _folder()
    if folder is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        # Dozens of small programs take longer together than JAX's default threshold of 1 s each.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    return folder
