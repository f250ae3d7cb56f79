"""The dotted paths that model pages print and people import, as one table onto the modules that hold the names.

`from quintet.modeling_outputs import X` and `import quintet.models.gpt2.modeling_gpt2` work although no such files
exist: a finder at the end of `sys.meta_path`, asked only for what nobody else found, makes an empty module that looks a
name up where it lives, when it is read. Importing an alias therefore loads nothing, torch least of all.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False  # importing it from `typing` would take most of the time of `import quintet`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["ALIASES", "install"]

_ROOT = __name__.rpartition(".")[0]

# Folder of a family in the reference: (its file in models/, the homes of its tokenizers).
_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("models.gpt2", ("tokenizers.gpt2",)),
    "gpt_oss": ("models.gpt_oss", ("tokenizers.fast",)),
    "seed_oss": ("models.seed_oss", ("tokenizers.fast",)),
    "gpt_neox": ("models.gpt_neox", ("tokenizers.gpt_neox",)),
    "openai": ("models.openai_gpt", ("tokenizers.openai_gpt",)),
}

# Path in the reference: the modules that hold its names, in the order in which they are searched.
ALIASES: dict[str, tuple[str, ...]] = {
    "cache_utils": ("cache",),
    "configuration_utils": ("config",),
    "generation.configuration_utils": ("generation.config", "generation.watermark_config"),
    "generation.logits_process": ("generation.processors",),
    "generation.stopping_criteria": ("generation.stopping",),
    "generation.utils": ("generation.generate", "generation.output"),
    "modeling_outputs": ("outputs",),
    "modeling_utils": ("modeling",),
    "models.auto": ("auto", "tokenizers.auto"),
    "models.auto.configuration_auto": ("auto",),
    "models.auto.modeling_auto": ("auto",),
    "models.auto.tokenization_auto": ("tokenizers.auto",),
    "pipelines.pt_utils": ("pipelines.data",),
    "pytorch_utils": ("layers.conv1d",),
    "tokenization_utils": ("tokenizers",),
    "tokenization_utils_base": ("tokenizers",),
    "tokenization_utils_fast": ("tokenizers",),
    "utils": ("outputs", "tokenizers.options"),
    "utils.generic": ("outputs", "tokenizers.options"),
}
for _folder, (_model, _tokenizers) in _FAMILIES.items():
    if _model != f"models.{_folder}":  # else the file itself stands at the folder's path
        ALIASES[f"models.{_folder}"] = (_model, *_tokenizers)
    ALIASES[f"models.{_folder}.configuration_{_folder}"] = (_model,)
    ALIASES[f"models.{_folder}.modeling_{_folder}"] = (_model,)
    ALIASES[f"models.{_folder}.tokenization_{_folder}"] = _tokenizers
    ALIASES[f"models.{_folder}.tokenization_{_folder}_fast"] = _tokenizers


class _Alias(ModuleType):
    """A module without names of its own."""

    def _homes(self) -> list[ModuleType]:
        return [import_module(f"{_ROOT}.{home}") for home in ALIASES[self.__name__.removeprefix(f"{_ROOT}.")]]

    def __getattr__(self, name: str) -> Any:
        # Tools ask every module for names like __file__ and __wrapped__: no reason to load the real ones.
        if not name.startswith("__"):
            for home in self._homes():
                if hasattr(home, name):
                    return getattr(home, name)
        elif name == "__all__":  # `from ... import *`
            return [public for home in self._homes() for public in home.__all__]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__})


class _Aliases:
    """Finder and loader of the table's modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load an alias, None for every other name."""
        if fullname.removeprefix(f"{_ROOT}.") not in ALIASES:
            return None
        return ModuleSpec(fullname, self, origin="an alias of quintet.paths", is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make the empty module."""
        return _Alias(spec.name, f"The names of {', '.join(ALIASES[spec.name.removeprefix(f'{_ROOT}.')])}.")

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def install() -> None:
    """Let the import system know the table; once, at `import quintet`."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.append(_Aliases())
