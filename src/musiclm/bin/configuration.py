"""The gin files of a run, held to more than gin asks: macros that are used, values of their types.

Only modules of `musiclm.bin` know gin.
"""

import argparse
import contextlib
import copy
import dataclasses
import difflib
import inspect
import logging
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from musiclm import errors

_PLAIN = (bool, int, float, str)
# What gin and the constructors of configs raise for mistakes in a file.
_MISTAKES = (ValueError, TypeError, AttributeError, ImportError, SyntaxError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a run's configuration."""
    parser.add_argument("--gin_file", action="append", required=True, help="a run; may be repeated")
    parser.add_argument(
        "--gin_bindings", action="append", default=[], help="override the file; may be repeated"
    )


def parse(
    gin_files: Sequence[str], gin_bindings: Sequence[str] = (), *, whole: bool = True
) -> None:
    """Reads files and then bindings, which override them; what gin knew before is forgotten.

    Args:
      gin_files, gin_bindings: what to read.
      whole: whether every macro that is used must be set.

    Raises:
      UserError: a file or binding can't be read, a macro is set that nothing uses or used and not
        set, or names a bucket, something is bound in a scope that nothing uses, or a plain value
        is not of its parameter's type.
    """
    import gin

    gin.clear_config()
    for path in map(pathlib.Path, gin_files):
        if not path.is_file():
            raise errors.UserError(f"there is no gin file {str(path)!r}: check the path")
        # Includes are written from the root of the repository: find them from anywhere.
        for parent in path.resolve().parents:
            if parent.name == "gin":
                gin.add_config_file_search_path(str(parent.parent))
                break
    with mistakes_told():
        read = gin.parse_config_files_and_bindings(
            list(gin_files), list(gin_bindings), finalize_config=whole
        )
    _check_macros()
    _check_scopes([*_texts(read), *gin_bindings])
    _check_places()
    _check_types()


def binds(function: str) -> bool:
    """Whether the configuration binds any argument of a function, "package.module:name"."""
    from gin import config

    return any(
        _name(config._REGISTRY[selector].wrapped) == function.replace(":", ".")
        for _, selector in config._CONFIG
    )


def resolve(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that the configuration binds for a function, with all that they refer to made.

    Raises:
      UserError: one of them can't be made, or one is missing.
    """
    import gin

    with mistakes_told():
        arguments = gin.get_bindings(function)
        inspect.signature(function).bind(**arguments)
    return arguments


def resolve_some(function: Callable[..., Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of a function's arguments that are named and bound; what others refer to stays unmade.

    Raises:
      UserError: one of them can't be made.
    """
    import gin

    with mistakes_told():
        unmade = gin.get_bindings(function, resolve_references=False)
        # Gin makes what a reference stands for when it is copied.
        return {name: copy.deepcopy(unmade[name]) for name in names if name in unmade}


def check_references(function: Callable[..., Any], given: Iterable[str]) -> None:
    """Makes the arguments of a function wherever the configuration refers to it, in its scope.

    Args:
      function: the function.
      given: its arguments that callers give.

    Raises:
      UserError: one of the others can't be made, or is missing.
    """
    import gin
    from gin import config

    with mistakes_told():
        for reference in config.iterate_references(config._CONFIG):
            if reference.configurable.wrapped is function:
                with gin.config_scope(reference.scopes or None):
                    arguments = gin.get_bindings(function)
                inspect.signature(function).bind(**dict.fromkeys(given) | arguments)


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """What the configuration makes of a function, as JSON: its arguments, and theirs in turn.

    Macros are replaced by their values, scopes by what is bound in them, and defaults are written
    out: configurations that come to the same read the same. What the function does not refer to is
    left out.
    """
    with mistakes_told():
        return _described_call(function)


@contextlib.contextmanager
def mistakes_told() -> Iterator[None]:
    """Turns what gin and configs raise into one line."""
    logging.disable(logging.ERROR)  # gin logs what it raises
    try:
        yield
    except _MISTAKES as error:
        told = errors.first_line(error)
        if isinstance(error, errors.UserError):
            raise errors.UserError(told) from error
        if lacking := re.search(r"'(\w+)/gin\.macro'", told):
            raise errors.UserError(
                f"the macro {lacking[1]} is used, and not set: add --gin_bindings '{lacking[1]}=…'"
            ) from error
        raise errors.UserError(f"{told}: mend the gin file or the bindings") from error
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def told_without_gin() -> Iterator[None]:
    """Takes off a `UserError` what gin appended on its way out of configured functions."""
    try:
        yield
    except errors.UserError as error:
        # gin appends lines on where in the configuration it happened.
        raise errors.UserError(errors.first_line(error)) from error


def _key(reference: Any) -> tuple[str, str]:
    """The scope and the selector of a gin reference; a macro's scope is its name."""
    return reference.config_key


def _macros() -> dict[str, Any]:
    """The macros that are set, with their values."""
    from gin import config

    return {
        scope: arguments["value"]
        for (scope, selector), arguments in config._CONFIG.items()
        if selector == "gin.macro"
    }


def _described_call(function: Callable[..., Any]) -> dict[str, Any]:
    import gin

    parameters = inspect.signature(function).parameters.values()
    arguments = {p.name: p.default for p in parameters if p.default is not p.empty}
    arguments |= gin.get_bindings(function, resolve_references=False)
    return {
        "calls": _name(function),
        **{name: _described(value) for name, value in sorted(arguments.items())},
    }


def _described(value: Any) -> Any:
    import gin
    from gin import config

    if isinstance(value, config.ConfigurableReference):
        scope, selector = _key(value)
        if selector == "gin.macro":
            return _described(_macros()[scope])
        # As gin does: a reference's own scope replaces the one that it stands in.
        with gin.config_scope(value.scopes or gin.current_scope()):
            return _described_call(value.configurable.wrapped)
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"calls": _name(type(value)), **fields}
    return _name(value) if callable(value) else repr(value)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check_macros() -> None:
    from gin import config

    used = {
        scope
        for scope, selector in map(_key, config.iterate_references(config._CONFIG))
        if selector == "gin.macro"
    }
    _refuse_unused("macro", set(_macros()), used)


def _check_scopes(texts: Iterable[str]) -> None:
    """Holds scopes that are bound in against all that the texts refer to.

    Texts, since what refers to a scope may stand in a study's overrides, or give way to a later
    binding: a run without its `eval_dataset` still has a file that binds in the scope of one.
    """
    from gin import config

    used = {scope for text in texts for scope in re.findall(r"@([\w./]+)/", text)}
    bound = {scope for scope, selector in config._CONFIG if scope and selector != "gin.macro"}
    # What is bound in a scope holds in all scopes inside it.
    used |= {scope for scope in bound if any(inner.startswith(f"{scope}/") for inner in used)}
    _refuse_unused("scope", bound, used)


def _texts(read: Iterable[Any]) -> Iterator[str]:
    """The texts of files that gin tells it has read, and of those that they include."""
    from gin import config

    for file in read:
        yield from _texts(file.includes)
        places = (pathlib.Path(prefix, file.filename) for prefix in config._LOCATION_PREFIXES)
        yield next(place for place in places if place.is_file()).read_text()


def _refuse_unused(what: str, names: set[str], used: set[str]) -> None:
    if strangers := sorted(names - used):
        name = strangers[0]
        near = [
            *difflib.get_close_matches(name, used - names, n=1),
            *difflib.get_close_matches(name, used, n=1),
        ]
        known = f"those used are {', '.join(sorted(used))}" if used else "take it out"
        hint = f"did you mean {near[0]}?" if near else known
        raise errors.UserError(f"the {what} {name} is set, and nothing uses it: {hint}")


def _check_places() -> None:
    """Shards are read at random, and checkpoints renamed: that takes a file system."""
    for name, value in _macros().items():
        if isinstance(value, str) and (url := re.match(r"\w+://[^/]*", value)):
            raise errors.UserError(
                f"the macro {name} is {value!r}, which is no path: mount {url[0]} (with gcsfuse, "
                "say) and give the folder; `python -m tpu_launch` does so by itself"
            )


def _check_types() -> None:
    from gin import config

    macros = _macros()
    for (scope, selector), arguments in config._CONFIG.items():
        if selector == "gin.macro":
            continue
        function = config._REGISTRY[selector].wrapped
        hints = _hints(function)
        for name, value in arguments.items():
            if isinstance(value, config.ConfigurableReference):
                value = macros.get(_key(value)[0], value)
            if name in hints and not _fits(value, hints[name]):
                where = f"{scope}/{selector}" if scope else selector
                raise errors.UserError(f"{where}.{name} is {value!r}: give {_told(hints[name])}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may stand for a hint; of a value that is not plain, True."""
    if not (value is None or type(value) in _PLAIN):
        return True
    return any(_takes(option, value) for option in _options(hint))


def _takes(option: Any, value: Any) -> bool:
    """Whether a plain value is of one type of a hint; True where Python can't tell."""
    if option in _PLAIN:
        return type(value) is option or (type(value) is int and option is float)
    try:
        return isinstance(value, typing.get_origin(option) or option)
    except TypeError:  # Any, literals, protocols
        return True


def _options(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _told(hint: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    names[type(None)] = "None"
    return " or ".join(names.get(option) or _type_name(option) for option in _options(hint))


def _type_name(option: Any) -> str:
    """`tuple[int, int]`, `MeshConfig`: without modules."""
    told = repr(option) if typing.get_origin(option) else option.__name__
    return re.sub(r"(\w+\.)+(?=\w)", "", told)
