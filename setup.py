"""Package definition: the `musiclm` library and the `data_pipelines` beside it."""

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.1",
    "flax>=0.12,<0.13",
    "gin-config>=0.5",
    "jax>=0.10,<0.13",
    "matplotlib>=3.8",
    "numpy>=2.0",
    "safetensors>=0.5",
    "soundfile>=0.13",
    "soxr>=0.5",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]
# Rendering the General-MIDI corpus; needs Debian's libfluidsynth3 and fluid-soundfont-gm as well.
DATA = ["pretty_midi>=0.2.10", "pyfluidsynth>=1.3.4"]
# Corpora to shards. Beam holds protobuf below 7, and sentencepiece from 0.2.3 on asks for that.
BEAM = [
    "apache-beam>=2.77,<3",
    "array_record>=0.8.3; sys_platform == 'linux'",
    "google-crc32c>=1.7",
    "pyarrow>=16",
    "scipy>=1.14",
    "sentencepiece<0.2.3",
]
# clu's metric writers stand on TensorFlow and TensorBoard.
TRAIN = [
    "clu>=0.0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "tensorboard>=2.19",
    "tensorflow-cpu>=2.20; platform_machine == 'x86_64' and sys_platform == 'linux'",
    "tensorflow>=2.20; platform_machine != 'x86_64' or sys_platform != 'linux'",
]
EVAL = ["librosa>=0.11", "scikit-learn>=1.6", "scipy>=1.14"]
TEST = ["hypothesis>=6.100", "pytest>=8.3", "pytest-xdist>=3.6"]
LINT = ["import-linter>=2.3", "pre-commit>=4.0", "ruff>=0.12"]

setup(
    packages=[*find_packages("src"), *find_packages(".", include=["data_pipelines*"])],
    package_dir={"musiclm": "src/musiclm", "data_pipelines": "data_pipelines"},
    package_data={"musiclm": ["bundles/*/*"]},
    install_requires=CORE,
    extras_require={
        "data": DATA,
        "beam": BEAM,
        "train": [*DATA, *BEAM, *TRAIN],
        "eval": EVAL,
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda13]"],
        "test": [*DATA, *BEAM, *TRAIN, *EVAL, *TEST],
        "dev": [*DATA, *BEAM, *TRAIN, *EVAL, *TEST, *LINT],
    },
    entry_points={"console_scripts": ["musiclm = musiclm.bin.main:run"]},
)
