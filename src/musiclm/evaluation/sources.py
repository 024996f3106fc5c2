"""Which version of the program made something: a digest of the sources that decide it."""

import hashlib
import pathlib

_LIBRARY = pathlib.Path(__file__).parents[1]


def digest(*parts: str) -> str:
    """Digest of some of the library's sources, as they lie there now.

    Args:
      *parts: files and folders of the library, such as "audio.py" and "models"; none takes all.
    """
    found = hashlib.sha256()
    for path in sorted(_LIBRARY.rglob("*.py")):
        place = path.relative_to(_LIBRARY)
        if not parts or any(place.is_relative_to(part) for part in parts):
            found.update(f"{place} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
