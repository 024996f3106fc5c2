"""MusicLM: text to music, from tokens to a waveform."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musiclm.api import MusicLM
    from musiclm.audio import Waveform
    from musiclm.errors import UserError

__version__ = "0.1.0"
__all__ = ["MusicLM", "UserError", "Waveform", "__version__"]

# Loaded on first use (PEP 562): `import musiclm` alone must not cost the start of JAX.
_HOMES = {"MusicLM": "musiclm.api", "UserError": "musiclm.errors", "Waveform": "musiclm.audio"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'musiclm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
