"""From a recipe's sources to typed rows: files, folders, hub data sets, runs and mixtures, split by prompt."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from rlhf_cli.data.columns import Kind
from rlhf_cli.data.convert import convert, form_of
from rlhf_cli.data.reading import SUFFIXES, Faults, Raw, read_file
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow, Split, TextRow
from rlhf_cli.errors import DataError
from rlhf_cli.recipe.schema import Source, Sources

SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
NOT_ROWS = ("metrics.jsonl", "samples.jsonl")  # of a run: its records, not what it made
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")

EVAL_FRACTION = 0.05  # of the prompts, where the recipe says nothing

Find = Callable[[str], Path]


class _Part(NamedTuple):
    """What one source gives."""

    name: str
    weight: float
    train: list[Any]
    held_out: list[Any]
    counts: Counter[str]


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
    """The rows of `sources`, some held out. All faults of all sources are raised as one DataError.

    `find` gives the folder of a run that a source names; `limit` reads the first rows alone, of each source. `seed`
    is for the order of the rows, and for which ones a mixture with weights leaves out; what is held out is the same
    with every seed. A mixture where no source sets a weight has all rows of all sources.
    """
    faults = Faults()
    parts = []
    given = sources if isinstance(sources, list) else [sources]
    weighted = any(source.weight is not None for source in given)
    for source in given:
        try:
            parts.append(_load_one(source, kind, find, limit, faults))
        except DataError as error:  # the other sources' faults are told with it
            faults.extend(error)
    _check_same_form(parts, faults)
    faults.raise_if_any()
    counts: Counter[str] = sum((part.counts for part in parts), Counter())
    if kind == "prompts":
        _drop_repeated_prompts(parts, counts)
    held_out = [row for part in parts for row in part.held_out]
    _drop_held_out(parts, held_out, counts)
    for part in parts:
        if not part.train:
            told = "; ".join(f"{name} {count}" for name, count in {**part.counts, **counts}.items())
            raise DataError(f"no rows are left to train on ({told}).", where=part.name)
    train = _mix(parts, seed, counts, weighted=weighted) if isinstance(sources, list) else parts[0].train
    train = train[:limit]
    counts.update({"train": len(train), "held out": len(held_out)})
    return Split(train, held_out, dict(counts))


def _load_one(source: Source, kind: Kind, find: Find, limit: int | None, faults: Faults) -> _Part:
    name = source.path or source.hub or source.run
    assert name, "the recipe's check lets no source through that has none of path, hub and run"
    counts: Counter[str] = Counter()

    def rows_of(split: str) -> list[Any]:
        raws = list(itertools.islice(_raw_rows(source, split, kind, find, faults), limit))
        rows = (
            convert(raws, kind, source.columns, name=name, faults=faults, editable=source.hub is None) if raws else None
        )
        counts["read"] += len(raws)
        if rows is None:
            if not faults.count:
                faults.add("there are no rows.", name)
            return []
        counts.update(rows.counts)
        return rows.rows

    if source.eval_split:
        return _Part(name, source.weight or 1.0, rows_of(source.split), rows_of(source.eval_split), counts)
    fraction = EVAL_FRACTION if source.eval_fraction is None else source.eval_fraction
    train, held_out = _hold_out(rows_of(source.split), fraction)
    return _Part(name, source.weight or 1.0, train, held_out, counts)


def _raw_rows(source: Source, split: str, kind: Kind, find: Find, faults: Faults) -> Iterator[Raw]:
    if source.hub:
        return _hub(source, split)
    path = Path(source.path) if source.path else find(str(source.run))
    if source.run or path.is_dir():
        files = _files_of_folder(path, kind, is_run=source.run is not None)
        chosen = _files_of_split(path, files, split, faults)
    else:
        _check_file(path, kind, split)
        chosen = [path]
    rows = itertools.chain.from_iterable(read_file(file, faults) for file in chosen)
    return _slice(rows, split)


def _check_file(path: Path, kind: Kind, split: str) -> None:
    if not path.exists():
        names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, names, 1)
        mend = f"Did you mean {close[0]}?" if close else "" if names else f"The folder {path.parent} has no files."
        raise DataError("there is no such file.", where=str(path), mend=mend)
    if path.suffix not in SUFFIXES:
        raise DataError(f"a data file's name must end in {', '.join(SUFFIXES)}.", where=str(path))
    if path.suffix == ".txt" and kind != "pretrain":
        raise DataError(f"a .txt file holds text to pretrain on, not {kind} rows.", where=str(path), mend="Use .jsonl.")
    if _parse_split(split)["name"] != "train":
        mend = "Use a folder with a file a split, such as train.jsonl and test.jsonl."
        raise DataError(f"a single file has no split {split!r}.", where=str(path), mend=mend)


def _files_of_folder(folder: Path, kind: Kind, *, is_run: bool) -> list[Path]:
    suffixes = (".jsonl",) if is_run else SUFFIXES if kind == "pretrain" else tuple(s for s in SUFFIXES if s != ".txt")
    names = sorted(folder.iterdir())
    files = [file for file in names if file.suffix in suffixes and not file.name.startswith(".")]
    files = [file for file in files if not (is_run and file.name in NOT_ROWS)]
    if not files:
        found = ", ".join(file.name for file in names[:10]) or "nothing"
        raise DataError(f"the folder has no {', '.join(suffixes)} file; found {found}.", where=str(folder))
    return files


def _files_of_split(folder: Path, files: list[Path], split: str, faults: Faults) -> list[Path]:
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
    faults.add(
        f"the folder has no split {wanted!r}; found {found}.", str(folder), "A split is a file such as test.jsonl."
    )
    return []


def _parse_split(split: str) -> dict[str, str | None]:
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise DataError(f"cannot read the split {split!r}.", mend="A split is a name, or a slice of it: train[:1000].")
    return match.groupdict()


def _slice(rows: Iterable[Raw], split: str) -> Iterator[Raw]:
    """The rows between the bounds of train[start:stop], each a number of rows or a percentage."""
    parts = _parse_split(split)
    bounds = [parts["start"] or "0", parts["stop"]]
    if any(bound and bound.endswith("%") for bound in bounds):
        rows = list(rows)
        total = len(rows)
        bounds = [str(total * int(b[:-1]) // 100) if b and b.endswith("%") else b for b in bounds]
    start, stop = int(bounds[0] or 0), int(bounds[1]) if bounds[1] else None
    return itertools.islice(rows, start, stop)


def _hub(source: Source, split: str) -> Iterator[Raw]:
    import datasets

    try:
        data = datasets.load_dataset(source.hub, source.config, split=split, revision=source.revision)
    except Exception as error:  # the library raises a dozen kinds, some of them other libraries'
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        mend = "Check the name, `config`, `split` and the connection; a private data set needs `hf auth login`."
        raise DataError(f"cannot load the hub data set: {reason}", where=str(source.hub), mend=mend) from error
    for number, fields in enumerate(data, 1):
        yield Raw(f"{source.hub} {split} row {number}", fields)


def _key(row: Any) -> str:
    """What rows with the same prompt share. White space does not make a prompt another one."""
    if isinstance(row, TextRow):
        parts = [row.text]
    elif row.prompt == "":  # no prompt: the row itself
        parts = [str(row.completion)] if isinstance(row, SftRow) else [str(row.chosen), str(row.rejected)]
    elif isinstance(row.prompt, str):
        parts = [row.prompt]
    else:
        parts = [text for turn in row.prompt for text in (turn["role"], turn["content"])]
    return "\0".join(" ".join(part.split()) for part in parts)


def _hold_out(rows: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """Rows to train on, and those of the share of prompts that is held out.

    A prompt's side follows from its own hash alone. Neither the recipe's seed nor the other rows have a say: whoever
    evaluates with another seed, or after adding rows, must not meet prompts that were trained on. So the share is
    kept as a coin keeps it, not to the row. Both sides get a prompt where there are two, which in tiny data alone
    takes one from its side.
    """
    keys = [_key(row) for row in rows]
    draws = {key: _draw(key) for key in dict.fromkeys(keys)}
    bound = Fraction(str(fraction)) * 2**256
    held_out = {key for key, draw in draws.items() if draw < bound}
    if not held_out and fraction > 0 and len(draws) > 1:
        held_out = {min(draws, key=draws.__getitem__)}
    elif held_out and len(held_out) == len(draws):
        held_out.remove(max(draws, key=draws.__getitem__))
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def _draw(key: str) -> int:
    """The number below 2^256 that `key` has for ever: another salt would move prompts from one side to the other."""
    return int.from_bytes(hashlib.sha256(f"held out\n{key}".encode()).digest(), "big")


def _check_same_form(parts: Sequence[_Part], faults: Faults) -> None:
    first = next((part for part in parts if part.train), None)
    for part in parts:
        if first and part.train and form_of(part.train[0]) != form_of(first.train[0]):
            faults.add(
                f"the rows are {form_of(part.train[0])}, and those of {first.name} are {form_of(first.train[0])}.",
                part.name,
                "Text and conversations are not mixed in one data set.",
            )


def _drop_repeated_prompts(parts: Sequence[_Part], counts: Counter[str]) -> None:
    """Prompts are asked once, whatever number of rows or sources hold them."""
    seen: set[str] = set()
    for rows in [part.held_out for part in parts] + [part.train for part in parts]:
        first = []
        for row in rows:
            if (key := _key(row)) in seen:
                counts["dropped: prompt seen before"] += 1
            else:
                seen.add(key)
                first.append(row)
        rows[:] = first


def _drop_held_out(parts: Sequence[_Part], held_out: Sequence[Any], counts: Counter[str]) -> None:
    """No prompt on both sides, also where two sources, or two splits of one, share it."""
    keys = {_key(row) for row in held_out}
    for part in parts:
        kept = [row for row in part.train if _key(row) not in keys]
        if len(kept) < len(part.train):
            counts["dropped: prompt is held out elsewhere"] += len(part.train) - len(kept)
            part.train[:] = kept


def _mix(parts: Sequence[_Part], seed: int, counts: Counter[str], *, weighted: bool) -> list[Any]:
    """Rows of each source, shuffled, none twice: all of them, or (`weighted`) in proportion to the sources' weights,
    as many as the scarcest source allows."""
    weights = [Fraction(str(part.weight)) for part in parts]
    unit = min(len(part.train) / weight for part, weight in zip(parts, weights, strict=True))
    rng = random.Random(seed)
    mixed = []
    for part, weight in zip(parts, weights, strict=True):
        count = int(unit * weight) if weighted else len(part.train)
        mixed += rng.sample(part.train, count)
        if len(parts) > 1:
            counts[f"used of {part.name}"] += count
        if count < len(part.train):
            counts[f"dropped: of {part.name}, to keep the weights"] += len(part.train) - count
    rng.shuffle(mixed)
    return mixed
