"""YAML with positions: a file becomes plain values and the line and column of every key.

PyYAML's own constructor lets the last of two equal keys win and reads `1e-4` as text and `no` as a boolean. Here the
core schema of YAML 1.2 holds (https://yaml.org/spec/1.2.2/#103-core-schema) and every issue is kept, so that all of
them are told in one go.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rlhf_cli.errors import Issue, RecipeError

Key = tuple[str | int, ...]  # ("ppo", "reward", 0, "weight")

MAX_NODES = 100_000  # an alias bomb unfolds beyond this
MAX_DEPTH = 50  # an alias inside of what it names unfolds beyond this
_TAG = "tag:yaml.org,2002:"
_PLAIN = [_TAG + kind for kind in ("null", "bool", "int", "float", "str", "map", "seq")]


class _CoreLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    firsts = ["" if letter == "\0" else letter for letter in _first]
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), firsts)


@dataclass(frozen=True)
class Place:
    """Where a key was written. `folder` is what its relative paths resolve against."""

    location: str
    folder: Path


@dataclass
class Document:
    """The values of a recipe file, and the place of each key."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    unread: set[Key] = field(default_factory=set)  # keys whose value could not be read: one issue each is enough

    def place(self, key: Key) -> Place | None:
        """Where `key` stands, or the nearest key around it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key)


def show(path: Path) -> str:
    """`path` as a person would write it here: as it was given, or relative where it lies below the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") or not path.is_absolute() else relative


def read(path: Path) -> Document:
    """Read one file. Raises RecipeError where it is no YAML mapping at all."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"Recipes in {show(path.parent)}: {', '.join(beside)}." if beside else "Check the path."
        raise RecipeError("no such recipe file.", location=show(path), hint=hint) from None
    except IsADirectoryError:
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        hint = f"Name a file in it: {', '.join(inside)}." if inside else "Name a recipe file."
        raise RecipeError("this is a folder.", location=show(path), hint=hint) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}.", location=show(path)) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"cannot be read: {error}.", location=show(path), hint="Save it as UTF-8 text.") from None
    document = Document(path)
    node = _compose(text, path)
    reader = _Reader(document, path)
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(
            "the recipe is empty." if node is None else "the recipe is not a mapping of keys to values.",
            location=show(path),
            hint="Start with `name:` and `base:`.",
        )
    document.values = reader.mapping(node, ())
    return document


def _compose(text: str, path: Path) -> yaml.Node | None:
    control = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if control is not None:
        before = text[: control.start()].split("\n")
        location = f"{show(path)}:{len(before)}:{len(before[-1]) + 1}"
        raise RecipeError(f"not YAML: the character U+{ord(control[0]):04X}.", location=location, hint="Remove it.")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_CoreLoader):  # compose() recurses in C, and would take Python down
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise _too_deep(show(path))
        return yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{show(path)}:{mark.line + 1}:{mark.column + 1}" if mark else show(path)
        line = next(iter(text.splitlines()[mark.line : mark.line + 1]), "") if mark else ""
        context = f" {error.context}" if error.context else ""
        hint = "Indent with spaces, not tabs." if "\t" in line[: len(line) - len(line.lstrip())] else ""
        raise RecipeError(f"not YAML: {error.problem}{context}.", location=location, hint=hint) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"not YAML: {error}.", location=show(path)) from None


def _too_deep(location: str) -> RecipeError:
    return RecipeError(
        f"nests more than {MAX_DEPTH} levels deep.", location=location, hint="Use fewer levels, or no alias."
    )


def scalar(text: str) -> Any:
    """The value of a `--set KEY=VALUE`, read as YAML. Raises RecipeError where it is none."""
    document = Document(Path("--set"))
    node = _compose(text, document.path)
    value = _Reader(document, document.path).value(node, ()) if node is not None else None
    if document.issues:
        raise RecipeError(document.issues)
    return value


class _Reader:
    """Turns nodes into values, noting places and issues as it goes."""

    def __init__(self, document: Document, path: Path) -> None:
        self.document = document
        self.path = path
        self.folder = path.parent.absolute()
        self.nodes = 0

    def _where(self, node: yaml.Node) -> str:
        return f"{show(self.path)}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def _fault(self, node: yaml.Node, message: str, hint: str) -> None:
        self.document.issues.append(Issue(message, self._where(node), hint))

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise RecipeError(
                f"unfolds to more than {MAX_NODES:,} values.", location=self._where(node), hint="Use fewer aliases."
            )
        if len(key) > MAX_DEPTH:
            raise _too_deep(self._where(node))
        if node.tag not in _PLAIN:
            self.document.unread.add(key)
            self._fault(node, f"{'.'.join(map(str, key))}: the tag {node.tag} is not allowed.", "Write a plain value.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.document.places[(*key, index)] = Place(self._where(item), self.folder)
                items.append(self.value(item, (*key, index)))
            return items
        return self._scalar(node, key)

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if name is None:
                self._fault(key_node, "a key must be plain text.", "Write `key: value`.")
                continue
            inner = (*key, name)
            dotted = ".".join(map(str, inner))
            if name in values:
                first = self.document.places[inner].location
                self._fault(key_node, f"{dotted}: duplicate key, first at {first}.", "Keep one of them.")
                continue
            self.document.places[inner] = Place(self._where(key_node), self.folder)
            values[name] = self.value(value_node, inner)
        return values

    def _scalar(self, node: yaml.Node, key: Key) -> Any:
        text, kind = str(node.value), node.tag.removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # more digits than Python reads, or a tag that the text belies
            self.document.unread.add(key)
            shown = text if len(text) < 40 else f"{text[:20]}… ({len(text):,} characters)"
            self._fault(node, f"{'.'.join(map(str, key))}: {shown} cannot be read as a number.", "Write a number.")
        return text


class Dumper(yaml.SafeDumper):
    """SafeDumper that puts in quotes what this module would not read back as text, such as the commit `12345e6`."""


for _letter, _resolvers in _CoreLoader.yaml_implicit_resolvers.items():
    for _tag, _regex in _resolvers:
        Dumper.add_implicit_resolver(_tag, _regex, [_letter])
