"""Corpora: how a folder of audio, and what its publishers say of it, becomes a manifest.

Each name below is a module of this package, imported only when it is asked for, with

  __doc__                one line about the corpus
  EXAMPLES               for --help
  add_arguments(parser)  its arguments; all have --out
  make(args)             -> corpus.Made: writes the manifest, and says what was left out of it

Nothing at the top of these modules is heavy or optional: what is, `make` imports.
"""

NAMES = (
    "folder",
    "gm",
    "musiccaps",
    "fma",
    "mtg_jamendo",
    "magnatagatune",
    "audioset",
    "tfds",
)
