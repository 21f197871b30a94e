"""From a recipe's sources to typed rows: files, folders, hub data sets, runs and mixtures, split by prompt."""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from rlhf_cli.data.columns import Kind
from rlhf_cli.data.formats import Converter
from rlhf_cli.data.readers import SUFFIXES, Batch, IssueCollector, cut, read_file
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow, Split, TextRow
from rlhf_cli.data.splits import draw, key, plain
from rlhf_cli.errors import DataError
from rlhf_cli.recipe.schema import Source, Sources

SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
NOT_ROWS = ("metrics.jsonl", "samples.jsonl")  # of a run: its records, not what it made
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")

EVAL_FRACTION = 0.05  # of the prompts, where the recipe says nothing
HEAD = 10  # batches that tell the columns

Find = Callable[[str], Path]


class _Part(NamedTuple):
    """What one source gives. A row is its index; its prompt is a number, see `prompts.draw`."""

    name: str
    weight: float
    form: str  # text, or a conversation; "" where there is none
    rows: list[Any]  # empty where they are but counted
    prompts: np.ndarray  # (rows,) uint64
    train: np.ndarray  # indices
    held_out: np.ndarray

    def kept(self, indices: np.ndarray) -> list[Any]:
        return [self.rows[index] for index in indices]


@overload
def load(
    sources: Sources, kind: Literal["pretrain"], *, seed: int, find: Find, limit: int | None = None
) -> Split[TextRow]: ...
@overload
def load(
    sources: Sources, kind: Literal["sft"], *, seed: int, find: Find, limit: int | None = None
) -> Split[SftRow]: ...
@overload
def load(
    sources: Sources, kind: Literal["preferences"], *, seed: int, find: Find, limit: int | None = None
) -> Split[PreferenceRow]: ...
@overload
def load(
    sources: Sources, kind: Literal["prompts"], *, seed: int, find: Find, limit: int | None = None
) -> Split[PromptRow]: ...
def load(sources: Sources, kind: Kind, *, seed: int, find: Find, limit: int | None = None) -> Split[Any]:
    """The rows of `sources`, some held out. All issues of all sources are raised as one DataError.

    `find` gives the folder of a run that a source names; `limit` reads the first rows alone, of each source. `seed`
    is for the order of the rows, and for which ones a mixture with weights leaves out; what is held out is the same
    with every seed. A mixture where no source sets a weight has all rows of all sources.
    """
    parts, counts, shares = _parts(sources, kind, find, limit, keep=True)
    rng = random.Random(seed)
    train = [row for part, share in zip(parts, shares, strict=True) for row in _drawn(part, share, rng, sources)]
    if isinstance(sources, list):
        rng.shuffle(train)
    return Split(train[:limit], [row for part in parts for row in part.kept(part.held_out)], counts)


def count(sources: Sources, kind: Kind, *, find: Find) -> dict[str, int]:
    """The counts of `load`, and its issues, in one pass that keeps 8 bytes a row."""
    return _parts(sources, kind, find, None, keep=False)[1]


def _parts(
    sources: Sources, kind: Kind, find: Find, limit: int | None, *, keep: bool
) -> tuple[list[_Part], dict[str, int], list[int]]:
    """What each source gives, no prompt on both sides; the counts; and how many rows of each are trained on."""
    issues = IssueCollector()
    counts: Counter[str] = Counter()
    parts = []
    given = sources if isinstance(sources, list) else [sources]
    for source in given:
        try:
            parts.append(_load_one(source, kind, find, limit, issues, counts, keep=keep))
        except DataError as error:  # the other sources' issues are told with it
            issues.extend(error)
    _check_same_form(parts, issues)
    issues.raise_if_any()
    if kind == "prompts":
        parts = _without_repeated_prompts(parts, counts)
    parts = _without_held_out(parts, counts)
    for part in parts:
        if not len(part.train):
            told = "; ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"no rows are left to train on ({told}).", location=part.name)
    shares = _shares(parts, counts, weighted=any(source.weight is not None for source in given))
    trained = sum(shares) if limit is None else min(sum(shares), limit)
    counts.update({"train": trained, "held out": sum(len(part.held_out) for part in parts)})
    return parts, dict(counts), shares


def _load_one(
    source: Source,
    kind: Kind,
    find: Find,
    limit: int | None,
    issues: IssueCollector,
    counts: Counter[str],
    *,
    keep: bool,
) -> _Part:
    name = source.path or source.hub or source.run
    assert name, "the recipe's check lets no source through that has none of path, hub and run"

    def rows_of(split: str, known: dict[str, None]) -> tuple[str, list[Any], np.ndarray]:
        """The form, the rows where they are kept, and the prompts of a split's rows."""
        told, rows, prompts = IssueCollector(), [], bytearray()
        batches = cut(_batches(source, split, kind, find, told, row_by_row=limit is not None), 0, limit)
        head = list(batches if keep else itertools.islice(batches, HEAD))
        found = known | dict.fromkeys(column for batch in head for fields in batch.rows for column in fields)
        converter = Converter(kind, source.columns, list(found), name=name, issues=told, editable=source.hub is None)
        for batch in itertools.chain(head, batches):
            texts = None if keep else converter.prompts(batch)
            if texts is None:
                made = converter.rows(batch)
                keys = map(key, made)
                if keep:
                    rows += made
            else:
                keys = map(plain, texts)
            prompts += b"".join(map(draw, keys))
        converter.close()
        if len(converter.columns) > len(found):  # what the rows mean may hang on a column that came late
            return rows_of(split, converter.columns)
        if not converter.counts["read"] and not told.count:
            told.add("there are no rows.", name)
        issues.merge(told)
        counts.update(converter.counts)
        return converter.form, rows, np.frombuffer(prompts, ">u8").astype(np.uint64)

    form, rows, prompts = rows_of(source.split, {})
    weight = source.weight or 1.0
    if source.eval_split:
        _, more, others = rows_of(source.eval_split, {})
        train, held_out = np.arange(len(prompts)), np.arange(len(others)) + len(prompts)
        return _Part(name, weight, form, rows + more, np.concatenate([prompts, others]), train, held_out)
    is_held_out = _held_out(prompts, EVAL_FRACTION if source.eval_fraction is None else source.eval_fraction)
    return _Part(name, weight, form, rows, prompts, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def _batches(
    source: Source, split: str, kind: Kind, find: Find, issues: IssueCollector, *, row_by_row: bool
) -> Iterator[Batch]:
    if source.hub:
        return _hub(source, split)
    path = Path(source.path) if source.path else find(str(source.run))
    if source.run or path.is_dir():
        files = _files_of_folder(path, kind, is_run=source.run is not None)
        chosen = _files_of_split(path, files, split, issues)
    else:
        _check_file(path, kind, split)
        chosen = [path]
    row_by_row = row_by_row or "[" in split
    return _slice((batch for file in chosen for batch in read_file(file, issues, row_by_row=row_by_row)), split)


def _check_file(path: Path, kind: Kind, split: str) -> None:
    if not path.exists():
        names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, names, 1)
        hint = f"Did you mean {close[0]}?" if close else "" if names else f"The folder {path.parent} has no files."
        raise DataError("there is no such file.", location=str(path), hint=hint)
    if path.suffix not in SUFFIXES:
        raise DataError(f"a data file's name must end in {', '.join(SUFFIXES)}.", location=str(path))
    if path.suffix == ".txt" and kind != "pretrain":
        raise DataError(
            f"a .txt file holds text to pretrain on, not {kind} rows.", location=str(path), hint="Use .jsonl."
        )
    if _parse_split(split)["name"] != "train":
        hint = "Use a folder with a file a split, such as train.jsonl and test.jsonl."
        raise DataError(f"a single file has no split {split!r}.", location=str(path), hint=hint)


def _files_of_folder(folder: Path, kind: Kind, *, is_run: bool) -> list[Path]:
    suffixes = (".jsonl",) if is_run else SUFFIXES if kind == "pretrain" else tuple(s for s in SUFFIXES if s != ".txt")
    names = sorted(folder.iterdir())
    files = [file for file in names if file.suffix in suffixes and not file.name.startswith(".")]
    files = [file for file in files if not (is_run and file.name in NOT_ROWS)]
    if not files:
        found = ", ".join(file.name for file in names[:10]) or "nothing"
        raise DataError(f"the folder has no {', '.join(suffixes)} file; found {found}.", location=str(folder))
    return files


def _files_of_split(folder: Path, files: list[Path], split: str, issues: IssueCollector) -> list[Path]:
    """The files of a split, where files are named for splits (train.jsonl, train-00000-of-00002.parquet); else all."""
    wanted = _parse_split(split)["name"]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(re.split(r"[-.]", file.name)[0], []).append(file)
    splits = [name for name in by_split if name in SPLIT_NAMES]
    if wanted in by_split:
        return by_split[wanted]
    if not splits and wanted == "train":
        return files
    found = ", ".join(splits) if splits else ", ".join(file.name for file in files[:10])
    issues.add(
        f"the folder has no split {wanted!r}; found {found}.", str(folder), "A split is a file such as test.jsonl."
    )
    return []


def _parse_split(split: str) -> dict[str, str | None]:
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise DataError(f"cannot read the split {split!r}.", hint="A split is a name, or a slice of it: train[:1000].")
    return match.groupdict()


def _slice(batches: Iterable[Batch], split: str) -> Iterator[Batch]:
    """The rows between the bounds of train[start:stop], each a number of rows or a percentage."""
    parts = _parse_split(split)
    bounds = [parts["start"] or "0", parts["stop"]]
    if any(bound and bound.endswith("%") for bound in bounds):
        batches = list(batches)
        total = sum(len(batch.rows) for batch in batches)
        bounds = [str(total * int(b[:-1]) // 100) if b and b.endswith("%") else b for b in bounds]
    return cut(batches, int(bounds[0] or 0), int(bounds[1]) if bounds[1] else None)


def _hub(source: Source, split: str) -> Iterator[Batch]:
    import datasets

    try:
        data = datasets.load_dataset(source.hub, source.config, split=split, revision=source.revision)
    except Exception as error:  # the library raises a dozen kinds, some of them other libraries'
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        hint = "Check the name, `config`, `split` and the connection; a private data set needs `hf auth login`."
        raise DataError(f"cannot load the hub data set: {reason}", location=str(source.hub), hint=hint) from error
    for number, fields in enumerate(data, 1):
        yield Batch(f"{source.hub} {split} row ", [number], [fields])


def _held_out(prompts: np.ndarray, fraction: float) -> np.ndarray:
    """Whether each row is of the share of prompts that is held out.

    A prompt's side follows from its own hash alone. Neither the recipe's seed nor the other rows have a say: whoever
    evaluates with another seed, or after adding rows, must not meet prompts that were trained on. So the share is
    kept as a coin keeps it, not to the row. Both sides get a prompt where there are two, which in tiny data alone
    takes one from its side.
    """
    held_out = prompts < np.uint64(Fraction(str(fraction)) * 2**64)
    if fraction > 0 and len(prompts):
        least, most = prompts.min(), prompts.max()
        if not held_out.any() and least < most:
            return prompts == least
        if held_out.all():
            return prompts != most
    return held_out


def _check_same_form(parts: Sequence[_Part], issues: IssueCollector) -> None:
    first = next((part for part in parts if part.form), None)
    for part in parts:
        if first and part.form and part.form != first.form:
            issues.add(
                f"the rows are {part.form}, and those of {first.name} are {first.form}.",
                part.name,
                "Text and conversations are not mixed in one data set.",
            )


def _without_repeated_prompts(parts: Sequence[_Part], counts: Counter[str]) -> list[_Part]:
    """Prompts are asked once, whatever number of rows or sources hold them."""
    sides = [part.prompts[part.held_out] for part in parts] + [part.prompts[part.train] for part in parts]
    everything = np.concatenate(sides)
    first = np.zeros(len(everything), bool)
    first[np.unique(everything, return_index=True)[1]] = True
    if repeated := len(everything) - int(first.sum()):
        counts["dropped: prompt seen before"] += repeated
    is_first = np.split(first, np.cumsum([len(side) for side in sides])[:-1])
    return [
        part._replace(train=part.train[train], held_out=part.held_out[held_out])
        for part, held_out, train in zip(parts, is_first[: len(parts)], is_first[len(parts) :], strict=True)
    ]


def _without_held_out(parts: Sequence[_Part], counts: Counter[str]) -> list[_Part]:
    """No prompt on both sides, also where two sources, or two splits of one, share it."""
    held_out = np.concatenate([part.prompts[part.held_out] for part in parts])
    kept = [part.train[~np.isin(part.prompts[part.train], held_out)] for part in parts]
    if dropped := sum(len(part.train) for part in parts) - sum(map(len, kept)):
        counts["dropped: prompt is held out elsewhere"] += dropped
    return [part._replace(train=train) for part, train in zip(parts, kept, strict=True)]


def _shares(parts: Sequence[_Part], counts: Counter[str], *, weighted: bool) -> list[int]:
    """How many rows of each source are used: all of them, or (`weighted`) in proportion to the sources' weights, as
    many as the scarcest source allows."""
    weights = [Fraction(str(part.weight)) for part in parts]
    unit = min(len(part.train) / weight for part, weight in zip(parts, weights, strict=True))
    shares = []
    for part, weight in zip(parts, weights, strict=True):
        share = int(unit * weight) if weighted else len(part.train)
        if len(parts) > 1:
            counts[f"used of {part.name}"] += share
        if share < len(part.train):
            counts[f"dropped: of {part.name}, to keep the weights"] += len(part.train) - share
        shares.append(share)
    return shares


def _drawn(part: _Part, share: int, rng: random.Random, sources: Sources) -> list[Any]:
    """The rows that a source gives to the training: of a list of sources shuffled, none twice."""
    rows = part.kept(part.train)
    return rng.sample(rows, share) if isinstance(sources, list) else rows
