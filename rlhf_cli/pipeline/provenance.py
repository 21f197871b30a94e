"""What a run is made of, written down as it begins; and what of that has changed when it is to be resumed."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from rlhf_cli import __version__
from rlhf_cli.errors import Issue
from rlhf_cli.pipeline.inputs import Input, settings_of
from rlhf_cli.recipe.schema import Recipe

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
START_OVER_HINT = "Undo this, or start anew without --resume."


def collect_provenance(stage: str, recipe: Recipe, inputs: Sequence[Input]) -> dict[str, Any]:
    """Settings, seed, inputs, package versions and device of a run of `stage`, as JSON has them."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    packages = {name: _version(name) for name in PACKAGES}
    provenance = {
        "settings": settings_of(stage, recipe),
        "seed": recipe.seed,
        "inputs": [item._asdict() for item in inputs],
        "packages": {"rlhf": __version__, "python": platform.python_version(), **packages},
        "device": device,
    }
    return json.loads(json.dumps(provenance, default=str))


def _version(package: str) -> str | None:
    """None where it is not installed: bitsandbytes is for quantized bases alone."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def diff_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Issue]:
    """Each setting and input that is not as it was when the run began: to go on would make neither run."""
    found = list(_settings("", then["settings"], now["settings"]))
    found += list(_settings("", {"seed": then["seed"]}, {"seed": now["seed"]}))
    before, after = _by_role(then["inputs"]), _by_role(now["inputs"])
    for role in dict.fromkeys((*before, *after)):
        old, new = before.get(role), after.get(role)
        if old is None or new is None:
            found.append(
                Issue(f"was {'not ' if old is None else ''}an input when the run began.", role, START_OVER_HINT)
            )
        elif _content(old) != _content(new):
            found.append(_input(role, old, new))
    return found


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may keep a resumed run from being bit-equal to an unbroken one, and does not keep it from being resumed."""
    found = [
        f"{name} was {then['packages'].get(name)} when the run began, and is {version}"
        for name, version in now["packages"].items()
        if then["packages"].get(name) != version
    ]
    if then["device"] != now["device"]:
        found.append(f"the device was {then['device']}, and is {now['device']}")
    return found


def _settings(key: str, then: Any, now: Any) -> Iterator[Issue]:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*then, *now)):
            yield from _settings(f"{key}.{name}".strip("."), then.get(name), now.get(name))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _settings(f"{key}.{index}" if len(then) > 1 else key, old, new)
    elif then != now:
        yield Issue(f"was {json.dumps(then)} when the run began, and is {json.dumps(now)}.", key, START_OVER_HINT)


def _by_role(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A role that several inputs have (sources of one kind of rows) is numbered."""
    found: dict[str, Mapping[str, Any]] = {}
    for item in inputs:
        role, number = item["role"], 1
        while role in found:
            number += 1
            role = f"{item['role']} ({number})"
        found[role] = item
    return found


def _content(item: Mapping[str, Any]) -> str:
    """As in `inputs.fingerprint`."""
    return item["sha256"] or item["ref"]


def _input(role: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Issue:
    if old["version"] != new["version"]:
        pin = f"Write {old['ref'].partition('@')[0]}@{old['version']} to go on" if old["kind"] == "run" else "Undo this"
        message = f"{old['ref']} was {old['version']} when the run began, and is {new['version']}."
        return Issue(message, role, f"{pin}, or start anew without --resume.")
    return Issue(f"the content of {new['path']} is not what it was when the run began.", role, START_OVER_HINT)
