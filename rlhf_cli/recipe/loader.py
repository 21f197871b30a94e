"""From a YAML file to a typed, frozen Recipe: `extends`, `--set`, absolute paths, and every issue in one error."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe import validation
from rlhf_cli.recipe.schema import SCHEMA, PathKind, Recipe, Section
from rlhf_cli.recipe.yaml_document import Document, Dumper, Key, Place, read, scalar, show
from rlhf_cli.redaction import redact_urls

SOURCE_KEYS = ("path", "hub", "run")
_DOTTED = re.compile(r"[a-z_]+(\.\w+)+")  # a key inside a section; a section's bare name is also its stage's
_PLACEHOLDERS: dict[Key, object] = {("name",): "unnamed", ("base",): {"model": "unnamed"}, ("base", "model"): "unnamed"}


class Loaded(NamedTuple):
    """A recipe, and where its keys were written."""

    recipe: Recipe
    document: Document

    def located(self, issue: Issue) -> Issue:
        """`issue`, found later, at the line of the key that its `where` names; a file below the working folder as a
        person would write it; else as it is."""
        if issue.location.startswith("/"):
            return Issue(issue.message, show(Path(issue.location)), issue.hint)
        if not _DOTTED.fullmatch(issue.location) or issue.location.partition(".")[0] not in Recipe.model_fields:
            return issue
        key: Key = tuple(int(part) if part.isdecimal() else part for part in issue.location.split("."))
        return _fault(self.document, key, f"{issue.location}: {issue.message}", issue.hint)


def load(path: Path, overrides: Sequence[str] = (), stages: Sequence[str] | None = None) -> Recipe:
    """The recipe alone of `read_recipe`."""
    return read_recipe(path, overrides, stages).recipe


def read_recipe(path: Path, overrides: Sequence[str] = (), stages: Sequence[str] | None = None) -> Loaded:
    """Read the recipe at `path`, apply `overrides` (`KEY=VALUE`), and check it for `stages` (None: those it names).

    Raises:
        RecipeError: with every issue of the files, the overrides and the values, each with its place.
    """
    document = _read_with_extends(path, ())
    for text in overrides:
        _override(document, text)
    values = _sections_may_be_empty(Recipe, document.values)
    recipe, wrong = _validate(document, values)
    issues = [*document.issues, *(issue for key, issue in wrong.items() if key not in document.unread)]
    if recipe is not None:
        wanted = validation.named_stages(recipe) if stages is None else stages
        for problem in validation.problems(recipe, wanted):
            if not _follows(problem.key, wrong):
                issues.append(_fault(document, *problem))
    if issues or recipe is None:
        raise RecipeError(sorted(dict.fromkeys(issues), key=_position))
    return Loaded(recipe, document)


def _follows(key: Key, wrong: Iterable[Key]) -> bool:
    """Whether a problem at `key` is but the echo of a key that was taken out there, or inside."""
    return any(other == key or (len(key) > 1 and other[: len(key)] == key) for other in wrong)


def dump(recipe: Recipe, stage: str | None = None) -> str:
    """The recipe as YAML, every default filled in; of the stages, those it names and `stage`."""
    values = recipe.model_dump(mode="json")
    named = recipe.model_fields_set | {stage, "name", "seed", "base", "adapter", "data"}
    written = {"schema": SCHEMA, **{key: value for key, value in values.items() if key in named}}
    return yaml.dump(written, Dumper=Dumper, sort_keys=False)


def _read_with_extends(path: Path, above: tuple[Path, ...]) -> Document:
    document = read(path)
    document.values = _sections_may_be_empty(Recipe, document.values)  # nothing written over a parent's section
    schema = document.values.pop("schema", SCHEMA)
    if schema != SCHEMA or schema is True:
        newer = isinstance(schema, int) and schema > SCHEMA
        hint = "Install a newer rlhf." if newer else f"Write `schema: {SCHEMA}`, or leave it out."
        message = f"schema: found {schema}, and this rlhf reads {SCHEMA}."
        raise RecipeError([_fault(document, ("schema",), message, hint)])
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    place = document.place(("extends",))
    location = place.location if place else show(path)
    if not isinstance(parent, str):
        raise RecipeError(f"extends: found {parent!r}, expected the path of a recipe.", location=location)
    parent_path = (path.parent / parent).resolve()
    chain = (*above, path.resolve())
    if parent_path in chain:
        cycle = " → ".join(show(p) for p in (*chain[chain.index(parent_path) :], parent_path))
        raise RecipeError(f"extends: goes in a circle: {cycle}.", location=location, hint="Take one of them out.")
    if not parent_path.is_file():
        raise RecipeError(f"extends: there is no file {show(parent_path)}.", location=location, hint="Check the path.")
    below = _read_with_extends(parent_path, chain)
    _merge(below, document.values, document.places, ())
    below.issues += document.issues
    below.unread |= document.unread
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
    location = f"--set {redact_urls(text)}"
    if not equals or not all(name.split(".")):
        document.issues.append(Issue("is not KEY=VALUE.", location, "Write --set ppo.kl.coef=0.1."))
        return
    if name == "extends":
        document.issues.append(Issue("extends is read from the file alone.", location, "Write it there."))
        return
    key: Key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
    try:
        value = scalar(value_text)
    except RecipeError as error:
        document.issues.append(Issue(error.issues[0].message, location, "Quote the value as YAML."))
        return
    place = Place(location, Path.cwd())
    list_at = next((i for i, part in enumerate(key) if isinstance(part, int)), None)
    if list_at is not None or _same_origin(document, key):
        _override_item(document, key, list_at, value, place)
        return
    nested: Any = value
    for part in reversed(key):
        nested = {part: nested}
    _merge(document, nested, {key[: i + 1]: place for i in range(len(key))}, ())
    document.places[key] = place


def _same_origin(document: Document, key: Key) -> bool:
    """Whether `key` is what a data source is read from already: its columns and split then stay as they are."""
    if len(key) != 3 or key[0] != "data" or key[2] not in SOURCE_KEYS:
        return False
    source = (document.values.get("data") or {}).get(key[1])
    return isinstance(source, dict) and key[2] in source


def _override_item(document: Document, key: Key, list_at: int | None, value: Any, place: Place) -> None:
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
        document.issues.append(Issue(f"{dotted} has no such item.", place.location, "Items count from 0."))
        return
    document.places[key] = place


def _validate(document: Document, values: dict[str, Any]) -> tuple[Recipe | None, dict[Key, Issue]]:
    """The recipe, where keys are wrong without them, so that the rest is checked too; and the issues by key."""
    wrong: dict[Key, Issue] = {}
    for _ in range(10):
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            issues = _grouped(document, values, error)
            wrong |= issues
            for key in reversed(issues):  # from the back, so that list indices stay true
                _take_out(values, key)
        else:
            made: Recipe = _absolute(recipe, document, ())
            return made, wrong
    return None, wrong


def _sections_may_be_empty(section: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """A copy in which a section whose every line is commented out, null in YAML, is the section's defaults.

    `adapter` and others that may be null stay as they are.
    """
    made = {}
    for name, value in values.items():
        field = section.model_fields.get(name)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, Section) and (value is None or isinstance(value, dict)):
            value = _sections_may_be_empty(inner, value or {})
        elif value is None and field is not None and isinstance(field.default, dict | list):
            value = copy.copy(field.default)
        made[name] = copy.deepcopy(value)
    return made


def _position(issue: Issue) -> tuple[str, int, int]:
    """Faults are told from a file's top to its bottom; those without a line come last."""
    match = re.fullmatch(r"(.*):(\d+):(\d+)", issue.location)
    return (match[1], int(match[2]), int(match[3])) if match else ("\uffff", 0, 0)


def _grouped(document: Document, values: dict[str, Any], error: ValidationError) -> dict[Key, Issue]:
    """One issue for each key that pydantic complains of, though a union complains once for each of its members."""
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


def _explain(document: Document, values: dict[str, Any], key: Key, items: list[Any]) -> Issue:
    dotted = ".".join(map(str, key))
    kind = items[0]["type"]
    if kind == "missing":
        return _fault(document, key, f"{dotted}: is missing.", f"Add `{key[-1]}:`.")
    if kind == "extra_forbidden":
        return _fault(document, key, f"{dotted}: unknown key.", _suggestion(key))
    found: Any = values
    for part in key:
        found = found[part]
    expected = " or ".join(dict.fromkeys(_expected(item) for item in items))
    hint = "Put it in quotes." if "valid string" in expected and isinstance(found, int | float | bool) else ""
    text = "a mapping" if isinstance(found, dict) else "a list" if isinstance(found, list) else _yaml(found)
    text = text if len(text) < 60 else f"{text[:40]}… ({len(text):,} characters)"
    return _fault(document, key, f"{dotted}: found {text}, expected {expected}.", hint)


def _expected(item: Any) -> str:
    """What pydantic would have taken, in a recipe's words."""
    if item["type"] == "too_short":
        return "at least one item"
    if item["type"] in ("model_type", "dict_type"):
        return "a mapping"
    message: str = item["msg"]
    return message.removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Value should be ")


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _suggestion(key: Key) -> str:
    """The section where the key belongs, the nearest field of its own, or all of these."""
    section: Any = Recipe
    for part in key[:-1]:
        if isinstance(part, str) and section is not None:
            section = _section_of(section, part)
    if section is None:
        return ""
    names = ["schema", "extends", *section.model_fields] if section is Recipe else list(section.model_fields)
    elsewhere = list(_homes(Recipe, str(key[-1]), ""))
    if elsewhere:
        return f"That key belongs under {' or '.join(elsewhere)}."
    near = difflib.get_close_matches(str(key[-1]), names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Allowed here: {', '.join(names)}."


def _homes(section: type[Section], wanted: str, dotted: str) -> Iterator[str]:
    """The sections, by dotted name, that have a field called `wanted`."""
    for name in section.model_fields:
        inner = _section_of(section, name)
        if inner is not None:
            if wanted in inner.model_fields:
                yield f"{dotted}{name}"
            yield from _homes(inner, wanted, f"{dotted}{name}.")


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
    if isinstance(target, list) and len(target) == 1:  # without its only item, another issue would be told of it
        _take_out(values, key[:-1])
    elif isinstance(target, list) or (isinstance(target, dict) and key[-1] in target):
        target.pop(last)
    else:  # a required key of a nested section is missing: the section goes
        _take_out(values, key[:-1])


def _fault(document: Document, key: Key, message: str, hint: str) -> Issue:
    place = document.place(key)
    return Issue(message, place.location if place else show(document.path), hint)


def _absolute(section: Section, document: Document, key: Key) -> Any:
    """The section with every path made absolute, against the folder of the file that wrote it."""
    changed = {}
    for name, field in type(section).model_fields.items():
        marker = next((item for item in field.metadata if isinstance(item, PathKind)), None)
        changed[name] = _absolute_value(getattr(section, name), marker, document, (*key, name))
    made = section.model_copy(update=changed)
    made.__pydantic_fields_set__ = set(section.model_fields_set)
    return made


def _absolute_value(value: Any, marker: PathKind | None, document: Document, key: Key) -> Any:
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
