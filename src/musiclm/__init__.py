"""MusicLM: text to music, from tokens to a waveform."""

__version__ = "0.1.0"
