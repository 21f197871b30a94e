"""From a YAML file to a typed, frozen Recipe: `extends`, `--set`, absolute paths, and every fault in one error."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlhf_cli.errors import Fault, RecipeError
from rlhf_cli.recipe import check
from rlhf_cli.recipe.document import Document, Key, Place, read, scalar, show
from rlhf_cli.recipe.schema import Recipe, Relative, Section

SOURCE_KEYS = ("path", "hub", "run")
_PLACEHOLDERS: dict[Key, object] = {("name",): "unnamed", ("base",): {"model": "unnamed"}, ("base", "model"): "unnamed"}


def load(path: Path, overrides: Sequence[str] = (), stages: Sequence[str] | None = None) -> Recipe:
    """Read the recipe at `path`, apply `overrides` (`KEY=VALUE`), and check it for `stages` (None: those it names).

    Raises:
        RecipeError: with every fault of the files, the overrides and the values, each with its place.
    """
    document = _read_with_extends(path, ())
    for text in overrides:
        _override(document, text)
    broken = list(document.faults)
    recipe = _validate(document, broken)
    if recipe is not None:
        wanted = check.named_stages(recipe) if stages is None else stages
        broken += [_fault(document, *problem) for problem in check.problems(recipe, wanted)]
    if broken or recipe is None:
        raise RecipeError(list(dict.fromkeys(broken)))
    return recipe


def dump(recipe: Recipe, stage: str | None = None) -> str:
    """The recipe as YAML, every default filled in; of the stages, those it names and `stage`."""
    values = recipe.model_dump(mode="json")
    named = recipe.model_fields_set | {stage, "name", "seed", "base", "adapter", "data"}
    return yaml.safe_dump({key: value for key, value in values.items() if key in named}, sort_keys=False)


def _read_with_extends(path: Path, above: tuple[Path, ...]) -> Document:
    document = read(path)
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    place = document.place(("extends",))
    where = place.where if place else show(path)
    if not isinstance(parent, str):
        raise RecipeError(f"extends: found {parent!r}, expected the path of a recipe.", where=where)
    parent_path = (path.parent / parent).resolve()
    chain = (*above, path.resolve())
    if parent_path in chain:
        cycle = " → ".join(show(p) for p in (*chain[chain.index(parent_path) :], parent_path))
        raise RecipeError(f"extends: goes in a circle: {cycle}.", where=where, mend="Take one of them out.")
    if not parent_path.is_file():
        raise RecipeError(f"extends: there is no file {show(parent_path)}.", where=where, mend="Check the path.")
    below = _read_with_extends(parent_path, chain)
    _merge(below, document.values, document.places, ())
    below.faults += document.faults
    below.path = path
    return below


def _merge(document: Document, values: dict[str, Any], places: dict[Key, Place], key: Key) -> None:
    """Lay `values` over the document: mappings merge; lists, and data sources with a new origin, are replaced."""
    target: Any = document.values
    for part in key:
        target = target[part]
    for name, value in values.items():
        inner = (*key, name)
        old = target.get(name)
        replaces_source = inner[0] == "data" and isinstance(value, dict) and any(k in value for k in SOURCE_KEYS)
        if isinstance(old, dict) and isinstance(value, dict) and not replaces_source:
            _merge(document, value, places, inner)
            continue
        target[name] = value
        for place in [p for p in document.places if p[: len(inner)] == inner]:
            del document.places[place]
        document.places.update({p: place for p, place in places.items() if p[: len(inner)] == inner})


def _override(document: Document, text: str) -> None:
    name, equals, value_text = text.partition("=")
    where = f"--set {text}"
    if not equals or not all(name.split(".")):
        document.faults.append(Fault("is not KEY=VALUE.", where, "Write --set ppo.kl.coef=0.1."))
        return
    key: Key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
    try:
        value = scalar(value_text)
    except RecipeError as error:
        document.faults.append(Fault(error.faults[0].message, where, "Quote the value as YAML."))
        return
    place = Place(where, Path.cwd())
    list_at = next((i for i, part in enumerate(key) if isinstance(part, int)), None)
    if list_at is not None:
        _override_item(document, key, list_at, value, place)
        return
    nested: Any = value
    for part in reversed(key):
        nested = {part: nested}
    places = {key[: i + 1]: place for i in range(len(key))}
    kept = {p: document.places[p] for p in places if p != key and p in document.places}
    _merge(document, nested, {**places, **kept}, ())
    document.places[key] = place


def _override_item(document: Document, key: Key, list_at: int, value: Any, place: Place) -> None:
    """Set one item of a list (`eval.gates.0.min`), or a key inside it."""
    target: Any = document.values
    try:
        for part in key[:-1]:
            target = target[part]
        if isinstance(target, list) and not isinstance(key[-1], int):
            raise TypeError
        target[key[-1]] = value
    except (KeyError, IndexError, TypeError):
        dotted = ".".join(map(str, key[:list_at]))
        document.faults.append(Fault(f"{dotted} has no such item.", place.where, "Items count from 0."))
        return
    document.places[key] = place


def _validate(document: Document, broken: list[Fault]) -> Recipe | None:
    """The recipe, or, where keys are wrong, the recipe without them, so that the rest is checked too."""
    values = _sections_may_be_empty(document.values)
    for _ in range(10):
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            faults = _grouped(document, values, error)
            broken += faults.values()
            for key in reversed(faults):  # from the back, so that list indices stay true
                _take_out(values, key)
        else:
            made: Recipe = _absolute(recipe, document, ())
            return made
    return None


def _sections_may_be_empty(values: dict[str, Any]) -> dict[str, Any]:
    """A section whose every line is commented out is null in YAML, and means the section's defaults."""
    values = copy.deepcopy(values)
    for name, value in values.items():
        field = Recipe.model_fields.get(name)
        section = field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if value is None and section:
            values[name] = {}
    return values


def _grouped(document: Document, values: dict[str, Any], error: ValidationError) -> dict[Key, Fault]:
    """One fault for each key that pydantic complains of, though a union complains once for each of its members."""
    groups: dict[Key, list[Any]] = {}
    for item in error.errors(include_url=False):
        groups.setdefault(_key_in_file(values, item["loc"], item["type"]), []).append(item)
    return {key: _explain(document, values, key, items) for key, items in groups.items()}


def _key_in_file(values: Any, loc: tuple[str | int, ...], kind: str) -> Key:
    """`loc` without what pydantic adds: names of union members, and the index of a lone data source."""
    key: list[Any] = []
    part: Any
    for part in loc:
        if (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
            key.append(part)
    if kind == "missing":
        key.append(loc[-1])
    return tuple(key)


def _explain(document: Document, values: dict[str, Any], key: Key, items: list[Any]) -> Fault:
    dotted = ".".join(map(str, key))
    kind = items[0]["type"]
    if kind == "missing":
        return _fault(document, key, f"{dotted}: is missing.", f"Add `{key[-1]}:`.")
    if kind == "extra_forbidden":
        return _fault(document, key, f"{dotted}: unknown key.", _suggestion(key))
    found: Any = values
    for part in key:
        found = found[part]
    expected = " or ".join(dict.fromkeys(item["msg"].removeprefix("Value error, ") for item in items))
    expected = expected.replace("Input should be ", "").replace("Value should be ", "")
    mend = "Put it in quotes." if "valid string" in expected and isinstance(found, int | float | bool) else ""
    text = "a mapping" if isinstance(found, dict) else "a list" if isinstance(found, list) else _yaml(found)
    return _fault(document, key, f"{dotted}: found {text}, expected {expected}.", mend)


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _suggestion(key: Key) -> str:
    """The nearest field of the same section, or all of its fields."""
    section: Any = Recipe
    for part in key[:-1]:
        if isinstance(part, str) and section is not None:
            section = _section_of(section, part)
    if section is None:
        return ""
    names = ["extends", *section.model_fields] if section is Recipe else list(section.model_fields)
    near = difflib.get_close_matches(str(key[-1]), names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    elsewhere = [name for name, field in Recipe.model_fields.items() if _has(field.annotation, str(key[-1]))]
    if elsewhere:
        return f"That key belongs under {' or '.join(elsewhere)}."
    return f"Allowed here: {', '.join(names)}."


def _has(annotation: object, name: str) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section) and name in annotation.model_fields


def _section_of(section: type[Section], name: str) -> type[Section] | None:
    """The section class that a field holds, looked for inside unions, lists and annotations."""
    field = section.model_fields.get(name)
    waiting: list[Any] = [field.annotation] if field else []
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
        waiting.extend(getattr(annotation, "__args__", ()))
    return None


def _take_out(values: dict[str, Any], key: Key) -> None:
    if key in _PLACEHOLDERS or not key:
        target: Any = values
        for part in key[:-1]:
            target = target[part]
        if key:
            target[key[-1]] = _PLACEHOLDERS[key]
        return
    target = values
    for part in key[:-1]:
        target = target[part]
    last: Any = key[-1]
    if isinstance(target, list) or (isinstance(target, dict) and key[-1] in target):
        target.pop(last)
    else:  # a required key of a nested section is missing: the section goes
        _take_out(values, key[:-1])


def _fault(document: Document, key: Key, message: str, mend: str) -> Fault:
    place = document.place(key)
    return Fault(message, place.where if place else show(document.path), mend)


def _absolute(section: Section, document: Document, key: Key) -> Any:
    """The section with every path made absolute, against the folder of the file that wrote it."""
    changed = {}
    for name, field in type(section).model_fields.items():
        marker = next((item for item in field.metadata if isinstance(item, Relative)), None)
        changed[name] = _absolute_value(getattr(section, name), marker, document, (*key, name))
    made = section.model_copy(update=changed)
    made.__pydantic_fields_set__ = set(section.model_fields_set)
    return made


def _absolute_value(value: Any, marker: Relative | None, document: Document, key: Key) -> Any:
    if isinstance(value, Section):
        return _absolute(value, document, key)
    if isinstance(value, list):
        # A lone data source is a list of one, whose index stands nowhere in the file.
        keys = [(*key, i) if (*key, i) in document.places else key for i in range(len(value))]
        return [_absolute_value(item, marker, document, inner) for item, inner in zip(value, keys, strict=True)]
    if marker is None or not isinstance(value, str):
        return value
    place = document.place(key)
    return marker.resolve(value, place.folder if place else Path.cwd())
