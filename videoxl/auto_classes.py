"""Registers `llava_qwen` with transformers' auto classes without importing transformers, torch or the model.

`AutoConfig`, `AutoModelForCausalLM` and `AutoModelForImageTextToText` look classes up in tables. As soon as
transformers has created a table, this module adds a lazy entry to it, which imports its class on lookup. So `import
videoxl` takes milliseconds, in whichever order the two packages are imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODEL_TYPE = "llava_qwen"
CONFIG = ("videoxl.model.configuration", "VideoXLConfig")
MODEL = ("videoxl.model.modeling", "LlavaQwenForCausalLM")


def announce() -> None:
    """Put the entries into transformers' tables, now or when their modules are imported."""
    later: dict[str, Callable[[ModuleType], None]] = {}
    for name, fill in _TABLES.items():
        if name in sys.modules:
            fill(sys.modules[name])
        else:
            later[name] = fill
    if later:
        sys.meta_path.insert(0, _AfterImport(later))


class _Entry(dict):
    """The registered part of one of transformers' tables, plus one lazy entry, which is imported on lookup.

    A membership test for another key imports nothing: transformers does such tests while it is being imported.
    """

    def __init__(self, table: dict, key: Callable[[], list[Any]], is_key: Callable[[Any], bool], place: tuple):
        super().__init__(table)
        self._key, self._is_key, self._place = key, is_key, place

    def _load(self) -> Any:
        return getattr(import_module(self._place[0]), self._place[1])

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or self._is_key(key)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if super().__contains__(key) else self._load()

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self):
        return iter(self.keys())

    def keys(self) -> Any:
        return [*super().keys(), *(key for key in self._key() if not super(_Entry, self).__contains__(key))]

    def values(self) -> Any:
        return [self[key] for key in self.keys()]

    def items(self) -> Any:
        return [(key, self[key]) for key in self.keys()]


def _add_config(module: ModuleType) -> None:
    table = module.CONFIG_MAPPING
    table._extra_content = _Entry(table._extra_content, lambda: [MODEL_TYPE], lambda key: key == MODEL_TYPE, CONFIG)


def _add_models(module: ModuleType) -> None:
    def known() -> list[Any]:
        # Nobody can hold a configuration whose class was never imported.
        loaded = sys.modules.get(CONFIG[0])
        return [getattr(loaded, CONFIG[1])] if hasattr(loaded, CONFIG[1]) else []

    for auto in (module.AutoModelForCausalLM, module.AutoModelForImageTextToText):
        table = auto._model_mapping
        table._extra_content = _Entry(table._extra_content, known, lambda key: key in known(), MODEL)


_TABLES = {
    "transformers.models.auto.configuration_auto": _add_config,
    "transformers.models.auto.modeling_auto": _add_models,
}


class _AfterImport(MetaPathFinder):
    """Calls a hook on each of certain modules right after its import."""

    def __init__(self, hooks: dict[str, Callable[[ModuleType], None]]):
        self._hooks = hooks
        self._looking: set[str] = set()

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._hooks or name in self._looking:
            return None
        self._looking.add(name)  # so that the search below finds the module itself
        try:
            spec = find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Hooked(spec.loader, self._hooks[name])
        return spec


class _Hooked(Loader):
    """Runs a module's own loader, then a hook."""

    def __init__(self, loader: Loader, hook: Callable[[ModuleType], None]):
        self._loader, self._hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._hook(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # inspect and importlib.resources use other attributes of a loader
