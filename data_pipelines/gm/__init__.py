"""Captioned General-MIDI music, composed by a small seeded program and played by FluidSynth."""

from data_pipelines.gm.build import BuildError, build

__all__ = ["BuildError", "build"]
