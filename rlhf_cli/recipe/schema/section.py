"""The base class of all recipe sections, and the types of their fields."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from rlhf_cli.run_reference import parse_run_reference
from rlhf_cli.stages import STAGES

Key = tuple[str | int, ...]  # of a value in the recipe, such as ("ppo", "reward", 0, "weight")

UnitFloat = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]

SPECIAL_WORDS = ("base", "scratch")  # no paths, even if a folder of that name exists
SMOKE_STEPS = 2  # optimizer steps or PPO iterations of a smoke run
SMOKE_TOKENS = 512  # limit on a sequence's length in a smoke run


def is_run_reference(text: str) -> bool:
    """Return whether `text` refers to a run of a known stage (`sft`, `sft@v0002`, `name/sft@latest`).

    Without a version, `owner/sft` is a Hub id.
    """
    reference = parse_run_reference(text)
    return (
        reference is not None
        and reference.stage in STAGES
        and (reference.name is None or reference.version is not None)
    )


@dataclass(frozen=True)
class PathKind:
    """Marker of a field whose text is a path, which is resolved against the folder of the file that it is written in.

    Attributes:
        kind: `file`: a file or folder. `template`: a file, or `auto`. `function`: `file.py:function`.
            `model`: a Hub id, a folder or a run. `run`: a run or a folder. `store`: a file, or the URL of a database.
        words: Special words that the field accepts in place of a path.
    """

    kind: Literal["file", "template", "function", "model", "run", "store"]
    words: tuple[str, ...] = ()

    def resolve(self, text: str, folder: Path) -> str:
        """Return `text` with its path made absolute. References to runs, Hub ids and special words stay unchanged."""
        if self.kind == "function":
            path, colon, name = text.rpartition(":")
            return f"{_join(folder, path)}:{name}" if colon else text
        if (self.kind == "template" and text == "auto") or (self.kind == "store" and "://" in text):
            return text
        if self.kind in ("file", "template", "store"):
            return _join(folder, text)
        if is_run_reference(text) or text in SPECIAL_WORDS:
            return text
        path = _join(folder, text)
        is_path = text.startswith((".", "/", "~")) or text.count("/") > 1  # a Hub id is owner/name
        return path if is_path or Path(path).exists() else text


def _join(folder: Path, text: str) -> str:
    return os.path.normpath(folder / os.path.expanduser(text))  # noqa: PTH111 (expanduser of pathlib raises for an unknown user)


class Section(BaseModel):
    """A part of a recipe: frozen, strictly typed, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def replace(self, **values: Any) -> Self:
        """Return a copy with some fields replaced. Which fields the user set stays recorded."""
        copy = self.model_copy(update=values)
        copy.__pydantic_fields_set__ = set(self.model_fields_set)
        return copy

    def smoke(self) -> Self:
        """Return the tiny version for `--smoke`: sizes shrink, all other settings stay."""
        changed: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                changed[name] = value.smoke()
            elif isinstance(value, list):
                changed[name] = [item.smoke() if isinstance(item, Section) else item for item in value]
        return self.replace(**changed)

    def iter_paths(self, key: Key = ()) -> Iterator[tuple[Key, PathKind, str]]:
        """Yield each path in this section, below `key`, with its kind."""
        for name, field in type(self).model_fields.items():
            kind = next((item for item in field.metadata if isinstance(item, PathKind)), None)
            yield from _iter_paths(getattr(self, name), kind, (*key, name))


def _iter_paths(value: Any, kind: PathKind | None, key: Key) -> Iterator[tuple[Key, PathKind, str]]:
    if isinstance(value, Section):
        yield from value.iter_paths(key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _iter_paths(item, kind, (*key, index))
    elif kind is not None and isinstance(value, str):
        yield key, kind, value
