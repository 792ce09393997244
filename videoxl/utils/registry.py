"""Implementations by name: those of this package, those registered by a program, those of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from videoxl.errors import ConfigError, VideoXLError

T = TypeVar("T")

_NOT_INSTALLED = (
    "no installed package brings one: install videoxl again (in a checkout: remove an old videoxl.egg-info, then "
    "pip install -e .)"
)


class Registry(Generic[T]):
    """Names of one kind of implementation.

    A name is looked up among what was registered, then among `builtin` places, then among the entry points of `group`,
    so that another package adds an implementation without touching this one:

        [project.entry-points."videoxl.compressors"]
        neighbours = "my_package.neighbours:Neighbours"

    Args:
        kind: what is registered, for messages ("compressor").
        group: the entry points' group.
        builtin: name -> "module:attribute", imported when asked for.
        error: type that is raised for an unknown name.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: Mapping[str, str] | None = None,
        error: type[VideoXLError] = ConfigError,
    ):
        self.kind = kind
        self.group = group
        self.error = error
        self._places = dict(builtin or {})
        self._known: dict[str, T] = {}

    def register(self, name: str, implementation: T | None = None) -> Any:
        """Register an implementation, or decorate one: `@COMPRESSORS.register("mine")`.

        Raises:
            ConfigError: the name is taken by another implementation.
        """
        if implementation is None:
            return lambda found: self.register(name, found) or found
        before = self._known.get(name, implementation)
        taken = self._places.get(name) or place_of(before)
        if taken != place_of(implementation) or not (before is implementation or _is_reimported(before)):
            raise ConfigError(f"{self.kind} {name!r} is registered already, by {taken}; take another name")
        self._known[name] = implementation

    def get(self, name: str) -> T:
        """The implementation of that name.

        Raises:
            ConfigError (or `error`): an unknown name (the message lists the known ones), or an installed package
                that cannot be imported.
        """
        if name not in self._known:
            if name in self._places:
                self._known[name] = load_place(self._places[name])
            else:
                found = [point for point in entry_points(group=self.group) if point.name == name]
                if not found:
                    use = f"use {', '.join(self.names())}" if self.names() else _NOT_INSTALLED
                    raise self.error(f"{self.kind} {name!r} is not known; {use}")
                try:
                    self._known[name] = found[0].load()
                except (ImportError, AttributeError) as error:
                    raise self.error(
                        f"{self.kind} {name!r} cannot be imported from {found[0].value}: {error}; repair or remove the "
                        "package that provides it"
                    ) from error
        return self._known[name]

    def names(self) -> list[str]:
        """All names, those of this package first."""
        outside = [point.name for point in entry_points(group=self.group)]
        return list(dict.fromkeys([*self._places, *self._known, *outside]))


def load_place(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    found = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


def _is_reimported(before: object) -> bool:
    """Whether one from the same place may replace it, as when a module is imported anew or a notebook's cell is run
    again: a class or function at the top of its module, not one of an object's or a function's own."""
    return "<" not in getattr(before, "__qualname__", "<")


def place_of(implementation: object) -> str:
    """Where a class or function is defined, as "module:attribute"."""
    return f"{getattr(implementation, '__module__', '')}:{getattr(implementation, '__qualname__', '')}"
