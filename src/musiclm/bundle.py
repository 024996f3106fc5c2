"""Released models on disk: one safetensors file a model, and one `bundle.json` for them all.

A component file carries its arrays and, in its metadata, the config that builds the model. The
training chain writes components one by one as it finishes them; `seal` then makes a bundle of them.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from musiclm.errors import UserError
from musiclm.token_spec import TokenSpec

FORMAT = 1
TOKENIZERS = ("soundstream", "w2v_bert", "mulan")
COMPONENTS = (*TOKENIZERS, "semantic", "coarse", "fine")
# A bundle may do without.
OPTIONAL = ("soundstorm",)
BUNDLED = pathlib.Path(__file__).parent / "bundles"


class BundleError(UserError):
    """A bundle or a component that can't be used; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Component:
    """One model: `config` (a dataclass, or a dict of them) and `variables`, a tree of arrays."""

    config: Any
    variables: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A whole chain.

    Attributes:
      name: what it is called.
      token_spec: rates and sizes of its tokens.
      components: its models by name.
      digest: SHA-256 of its `bundle.json`, which tells those of the components.
      sampling: by stage, how its tokens are best drawn where that is not the paper's way:
        `guidance`, `temperature`, `top_k` or `top_p`.
    """

    name: str
    token_spec: TokenSpec
    components: Mapping[str, Component]
    digest: str
    sampling: Mapping[str, Mapping[str, float | int]] = dataclasses.field(default_factory=dict)


def to_json(config: Any) -> Any:
    """Dataclasses, dicts, tuples and scalars as JSON; a dataclass names its class."""
    if dataclasses.is_dataclass(config):
        cls = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": f"{cls.__module__}.{cls.__qualname__}", **fields}
    if isinstance(config, Mapping):
        return {name: to_json(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_json(value) for value in config]
    return config


def from_json(value: Any) -> Any:
    """The inverse of `to_json`; lists come back as tuples. Only this package's classes are made."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item) for name, item in value.items() if name != "class"}
    if "class" not in value:
        return fields
    module, _, name = value["class"].rpartition(".")
    if not module.startswith("musiclm."):
        raise BundleError(
            f"the bundle asks for the class {value['class']}, which is not of this package: take a "
            "bundle from elsewhere"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{name} is no config")
        return cls(**fields)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise BundleError(
            f"the bundle's config {value['class']} does not fit this version ({error}): "
            "use the version that wrote it, or train it again"
        ) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": x}}` as `{"a/b": x}`."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write: what is there moves to `path` at the end, or goes after an error."""
    # Of this thread: another may be at the same file.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_beside(path: pathlib.Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with beside(path) as unfinished:
        unfinished.write_bytes(data)


def save_component(
    directory: str | os.PathLike, name: str, component: Component, dtype: Any = np.float16
) -> pathlib.Path:
    """Writes `directory/name.safetensors`; floating-point arrays are stored as `dtype`.

    Raises:
      BundleError: a value does not fit the storage type.
    """
    arrays = {}
    for path, value in flatten(component.variables).items():
        array = np.asarray(value)
        if np.issubdtype(array.dtype, np.floating):
            with np.errstate(over="ignore"):  # checked just below
                array = array.astype(dtype)
            if not np.isfinite(array).all():
                raise BundleError(f"{name}: {path} is not finite as {np.dtype(dtype)}: store wider")
        arrays[path] = np.asarray(array, order="C")  # ascontiguousarray would make scalars 1-D
    # One key alone: safetensors writes several in any order, and equal models have equal bytes.
    metadata = {"musiclm": json.dumps({"format": FORMAT, "config": to_json(component.config)})}
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.safetensors"
    write_beside(path, safetensors.numpy.save(arrays, metadata))
    return path


def load_component(directory: str | os.PathLike, name: str) -> Component:
    """Reads a component; its floating-point arrays come back as f32.

    Raises:
      BundleError: the file is missing, damaged or of another format.
    """
    path = pathlib.Path(directory) / f"{name}.safetensors"
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = (file.metadata() or {}).get("musiclm", "{}")
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: make it, or fetch the bundle again") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path} is damaged ({error}): fetch the bundle again") from error
    try:
        record = json.loads(metadata)
        if record.get("format") != FORMAT:
            raise BundleError(
                f"{path} has format {record.get('format')}, and this version reads {FORMAT}: "
                "it is not a MusicLM component, or one of another version"
            )
        config = from_json(record["config"])
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is no MusicLM component ({error!r}): fetch it again") from error
    for key, array in flat.items():
        if np.issubdtype(array.dtype, np.floating):
            flat[key] = array.astype(np.float32)
    return Component(config, unflatten(flat))


def digest_of(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tokenizer_digest(directory: str | os.PathLike) -> str:
    """SHA-256 over the digests of the three tokenizers: what tokens were made by.

    Args:
      directory: a bundle's, or any that holds these three components.

    Raises:
      BundleError: one is missing.
    """
    files = {part: pathlib.Path(directory) / f"{part}.safetensors" for part in TOKENIZERS}
    missing = [part for part, path in files.items() if not path.is_file()]
    if missing:
        raise BundleError(f"{directory} lacks {', '.join(missing)}: train them first")
    digests = {part: digest_of(path) for part, path in files.items()}
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def seal(
    directory: str | os.PathLike,
    name: str,
    token_spec: TokenSpec,
    sampling: Mapping[str, Mapping[str, float | int]] | None = None,
) -> None:
    """Makes a bundle of a directory that holds every component, by writing its `bundle.json`.

    Of those that are optional it takes what is there.
    """
    directory = pathlib.Path(directory)
    files = {part: directory / f"{part}.safetensors" for part in (*COMPONENTS, *OPTIONAL)}
    files = {part: path for part, path in files.items() if part in COMPONENTS or path.is_file()}
    missing = [part for part, path in files.items() if not path.is_file()]
    if missing:
        raise BundleError(f"{directory} lacks {', '.join(missing)}: train them first")
    record = {
        "format": FORMAT,
        "name": name,
        "token_spec": dataclasses.asdict(token_spec),
        "sampling": sampling or {},
        "components": {part: digest_of(path) for part, path in files.items()},
    }
    write_beside(directory / "bundle.json", (json.dumps(record, indent=2) + "\n").encode())


def find(name_or_path: str | os.PathLike) -> pathlib.Path:
    """The directory of a bundle, by the name of a bundled one or by path.

    Raises:
      BundleError: there is none; the message lists those that come with the package.
    """
    for directory in (pathlib.Path(name_or_path), BUNDLED / str(name_or_path)):
        if (directory / "bundle.json").is_file():
            return directory
    known = sorted(path.parent.name for path in BUNDLED.glob("*/bundle.json"))
    raise BundleError(
        f"unknown model {str(name_or_path)!r}: give a directory with a bundle.json, or one of "
        f"{', '.join(known) or '(none bundled)'}"
    )


def find_tokenizers(name_or_path: str | os.PathLike) -> pathlib.Path:
    """The directory of a bundle, as `find`, or one that holds only components of tokenizers.

    Raises:
      BundleError: there is none.
    """
    for directory in (pathlib.Path(name_or_path), BUNDLED / str(name_or_path)):
        if any((directory / f"{part}.safetensors").is_file() for part in TOKENIZERS):
            return directory
    raise BundleError(
        f"there are no tokenizers in {str(name_or_path)!r}: give the name or the directory of a "
        f"bundle, or a directory with {', '.join(f'{part}.safetensors' for part in TOKENIZERS)}"
    )


def load(name_or_path: str | os.PathLike) -> Bundle:
    """Reads a bundle, checking every file against its digest.

    Raises:
      BundleError: it is unknown, damaged or foreign.
    """
    directory = find(name_or_path)
    manifest = directory / "bundle.json"
    try:
        record = json.loads(manifest.read_text())
        if record["format"] != FORMAT:
            raise BundleError(
                f"{manifest} has format {record['format']}, and this version reads {FORMAT}: "
                "use the version of musiclm that wrote it"
            )
        name = record["name"]
        if not isinstance(name, str):
            raise TypeError(f"its name is {name!r}")
        token_spec = TokenSpec(**record["token_spec"])
        optional = [part for part in OPTIONAL if part in record["components"]]
        digests = {part: record["components"][part] for part in (*COMPONENTS, *optional)}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{manifest} is no MusicLM bundle ({error!r}): fetch it again") from error
    components = {}
    for part, digest in digests.items():
        path = directory / f"{part}.safetensors"
        if not path.is_file():
            raise BundleError(f"{path} is missing: fetch the bundle again")
        if digest_of(path) != digest:
            raise BundleError(f"{path} is damaged (its digest differs): fetch the bundle again")
        components[part] = load_component(directory, part)
    return Bundle(
        name=name,
        token_spec=token_spec,
        components=components,
        digest=hashlib.sha256(manifest.read_bytes()).hexdigest(),
        sampling=record.get("sampling", {}),
    )
