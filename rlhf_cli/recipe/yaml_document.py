"""Read YAML files with the position of every key.

PyYAML's own constructor keeps the last of two equal keys and reads `1e-4` as text and `no` as a boolean. This module
follows the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema) and collects all issues, so that
they are reported at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.formatting import format_path
from rlhf_cli.recipe.schema import Key

MAX_NODES = 100_000  # values after expanding aliases: the limit stops alias bombs
MAX_DEPTH = 50  # levels after expanding aliases: the limit stops aliases inside their own anchor
MAX_SHOWN_CHARACTERS = 40  # of a value that a message quotes
_TAG_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = [_TAG_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "map", "seq")]
_SCALARS = (  # type, pattern, first characters
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)


class _CoreLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text that this module would read as another type, such as the commit `12345e6`."""


for _kind, _pattern, _characters in _SCALARS:
    _regex = re.compile(f"^(?:{_pattern})$")
    _firsts = ["" if character == "\0" else character for character in _characters]
    _CoreLoader.add_implicit_resolver(_TAG_PREFIX + _kind, _regex, _firsts)
    Dumper.add_implicit_resolver(_TAG_PREFIX + _kind, _regex, _firsts)


@dataclass(frozen=True)
class Position:
    """The position of a key.

    Attributes:
        location: `file:line:column`, or the command-line option.
        folder: The folder against which the key's relative paths are resolved.
    """

    location: str
    folder: Path


@dataclass
class Document:
    """The values of a recipe file and the position of each key.

    Attributes:
        path: The file.
        values: The values, before validation.
        positions: The position of each key.
        issues: The issues found so far.
        unreadable: Keys whose value could not be read. They have an issue and are not reported again.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    positions: dict[Key, Position] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    unreadable: set[Key] = field(default_factory=set)

    def position(self, key: Key) -> Position | None:
        """Return the position of `key` or of the closest key that contains it, or None if there is none."""
        while key and key not in self.positions:
            key = key[:-1]
        return self.positions.get(key)

    def location(self, key: Key) -> str:
        """Return the location of `key` or of the closest key that contains it, or else the file."""
        position = self.position(key)
        return format_path(self.path) if position is None else position.location


def dotted(key: Key) -> str:
    """Return a key as `ppo.reward.0.weight`."""
    return ".".join(map(str, key))


def shorten(text: str) -> str:
    """Return `text` with its length in place of its end if it is too long for a message."""
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:MAX_SHOWN_CHARACTERS]}… ({len(text):,} characters)"


def format_value(value: object) -> str:
    """Return a value as a message quotes it: as in YAML, shortened, or only its kind for lists and mappings."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return shorten(text.removesuffix("\n...\n").strip())


def read_document(path: Path, *, noun: str = "recipe", hint: str = "Start with `name:` and `base:`.") -> Document:
    """Read one file.

    Args:
        path: The file.
        noun: What messages call it.
        hint: How it starts, for the message about a file that is not a mapping.

    Raises:
        RecipeError: The file cannot be read, or is not a YAML mapping. Further issues are in the document.
    """
    root = _compose(_read_text(path, noun), path)
    if not isinstance(root, yaml.MappingNode):
        problem = f"empty {noun}" if root is None else "not a mapping of keys to values"
        raise RecipeError("recipe.not-a-mapping", f"{problem}.", location=format_path(path), hint=hint)
    document = Document(path)
    document.values = _Reader(document).mapping(root, ())
    return document


def parse_scalar(text: str) -> Any:
    """Return the value of a `--set KEY=VALUE`, which is read as YAML.

    Raises:
        RecipeError: The text is not YAML.
    """
    document = Document(Path("--set"))
    node = _compose(text, document.path)
    value = None if node is None else _Reader(document).value(node, ())
    if document.issues:
        raise RecipeError(document.issues)
    return value


def _read_text(path: Path, noun: str) -> str:
    location = format_path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        recipes = _recipes_in(path.parent)
        hint = f"Choose one of {', '.join(recipes)} in {format_path(path.parent)}." if recipes else "Check the path."
        raise RecipeError("recipe.not-found", f"{noun} file not found.", location=location, hint=hint) from None
    except IsADirectoryError:
        recipes = _recipes_in(path)
        hint = f"Choose a recipe in it: {', '.join(recipes)}." if recipes else f"Choose a {noun} file."
        message = f"{noun} file not found; found a directory."
        raise RecipeError("recipe.not-found", message, location=location, hint=hint) from None
    except OSError as error:
        message = f"cannot read the {noun}: {error.strerror}."
        raise RecipeError("recipe.unreadable", message, location=location, hint="Check its permissions.") from None
    except UnicodeDecodeError as error:
        message = f"cannot read the {noun}: {error}."
        raise RecipeError("recipe.unreadable", message, location=location, hint="Save it as UTF-8 text.") from None


def _recipes_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.y*ml")) if folder.is_dir() else []


def _compose(text: str, path: Path) -> yaml.Node | None:
    """Parse `text` into nodes. Return None if it is empty."""
    control = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if control is not None:
        lines = text[: control.start()].split("\n")
        location = f"{format_path(path)}:{len(lines)}:{len(lines[-1]) + 1}"
        message = f"invalid YAML: the character U+{ord(control[0]):04X} is not allowed."
        raise RecipeError("recipe.invalid-yaml", message, location=location, hint="Remove it.")
    try:
        _check_depth(text, path)
        return yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        raise _marked_error(error, text, path) from None
    except yaml.YAMLError as error:
        message = f"invalid YAML: {error}."
        raise RecipeError("recipe.invalid-yaml", message, location=format_path(path)) from None


def _check_depth(text: str, path: Path) -> None:
    """Raise RecipeError if `text` nests too deeply. PyYAML's compose() recurses in C and would crash Python."""
    depth = 0
    for event in yaml.parse(text, Loader=_CoreLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _too_deep_error(format_path(path))


def _too_deep_error(location: str) -> RecipeError:
    message = f"nested too deeply; expected at most {MAX_DEPTH} levels."
    return RecipeError("recipe.too-complex", message, location=location, hint="Use fewer levels or aliases.")


def _marked_error(error: yaml.MarkedYAMLError, text: str, path: Path) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    location = f"{format_path(path)}:{mark.line + 1}:{mark.column + 1}" if mark else format_path(path)
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    indentation = line[: len(line) - len(line.lstrip())]
    hint = "Indent with spaces, not tabs." if "\t" in indentation else ""
    context = f" {error.context}" if error.context else ""
    return RecipeError("recipe.invalid-yaml", f"invalid YAML: {error.problem}{context}.", location=location, hint=hint)


class _Reader:
    """Converts nodes to values and records positions and issues in a document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.folder = document.path.parent.absolute()
        self.nodes = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        """Return the value of a node."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            message = f"too many values after expanding aliases; expected at most {MAX_NODES:,}."
            location = self._location(node)
            raise RecipeError("recipe.too-complex", message, location=location, hint="Use fewer aliases.")
        if len(key) > MAX_DEPTH:
            raise _too_deep_error(self._location(node))
        if node.tag not in _PLAIN_TAGS:
            self.document.unreadable.add(key)
            message = f"{dotted(key)}: the tag {node.tag} is not allowed."
            self._add_issue("recipe.invalid-yaml", node, message, "Write a plain value.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, key)
        return self._scalar(node, key)

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        """Return the values of a mapping, whose keys are text. The first of two equal keys is kept."""
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                message = "invalid key; expected plain text."
                self._add_issue("recipe.invalid-yaml", key_node, message, "Write `key: value`.")
                continue
            name = str(key_node.value)
            inner = (*key, name)
            if name in values:
                first = self.document.positions[inner].location
                message = f"{dotted(inner)}: duplicate key, first used at {first}."
                self._add_issue("recipe.duplicate-key", key_node, message, "Keep one of them.")
                continue
            self.document.positions[inner] = Position(self._location(key_node), self.folder)
            values[name] = self.value(value_node, inner)
        return values

    def _sequence(self, node: yaml.SequenceNode, key: Key) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.document.positions[(*key, index)] = Position(self._location(item), self.folder)
            items.append(self.value(item, (*key, index)))
        return items

    def _scalar(self, node: yaml.Node, key: Key) -> Any:
        text, kind = str(node.value), node.tag.removeprefix(_TAG_PREFIX)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # more digits than Python reads, or a tag that does not fit the text
            self.document.unreadable.add(key)
            message = f"{dotted(key)}: invalid number; found {shorten(text)}."
            self._add_issue("recipe.invalid-value", node, message, "Write a number.")
        return text

    def _location(self, node: yaml.Node) -> str:
        mark = node.start_mark
        return f"{format_path(self.document.path)}:{mark.line + 1}:{mark.column + 1}"

    def _add_issue(self, code: str, node: yaml.Node, message: str, hint: str) -> None:
        self.document.issues.append(Issue(code, message, self._location(node), hint))
