"""Find section classes by key, and the sections that have a field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_cli.recipe.schema.recipe import Recipe
from rlhf_cli.recipe.schema.section import Key, Section


def section_class(key: Key) -> type[Section] | None:
    """Return the class of the section at `key`, or None if no section is there. Indices of lists are ignored."""
    section: type[Section] | None = Recipe
    for part in key:
        if isinstance(part, str) and section is not None:
            section = _field_section(section, part)
    return section


def sections_with_field(name: str) -> list[str]:
    """Return the dotted keys of all sections below the recipe that have a field called `name`."""
    return [key for key, section in iter_section_classes() if name in section.model_fields]


def iter_section_classes(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield the dotted key and the class of each section below `section`."""
    for name in section.model_fields:
        inner = _field_section(section, name)
        if inner is not None:
            yield f"{prefix}{name}", inner
            yield from iter_section_classes(inner, f"{prefix}{name}.")


def _field_section(section: type[Section], name: str) -> type[Section] | None:
    """Return the section class that a field holds, also inside a union, list or annotation, or None."""
    field = section.model_fields.get(name)
    annotations: list[Any] = [field.annotation] if field else []
    while annotations:
        annotation = annotations.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
        annotations.extend(getattr(annotation, "__args__", ()))
    return None
