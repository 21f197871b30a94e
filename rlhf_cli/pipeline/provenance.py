"""Record what a run is made from, and compare it when the run is resumed."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from rlhf_cli import __version__
from rlhf_cli.errors import Issue
from rlhf_cli.pipeline.resolve import ResolvedStage

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
REVERT_HINT = "Revert the change, or start a new run without --resume."


def collect_provenance(stage: ResolvedStage) -> dict[str, Any]:
    """Return settings, seed, inputs, package versions and device as JSON values."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    packages = {name: _version(name) for name in PACKAGES}
    provenance = {
        "settings": stage.settings,
        "seed": stage.recipe.seed,
        "inputs": [item._asdict() for item in stage.inputs],
        "packages": {"rlhf": __version__, "python": platform.python_version(), **packages},
        "device": device,
    }
    return json.loads(json.dumps(provenance, default=str))


def git_commit() -> str | None:
    """Return the commit of the working directory, or None if it is not a git checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        return found.stdout.strip() or None
    return None


def diff_settings(stage: ResolvedStage, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Issue]:
    """Return an issue for each setting and input of `stage` that changed: resuming would mix two different runs."""
    found = list(_diff("", then["settings"], now["settings"]))
    found += list(_diff("", {"seed": then["seed"]}, {"seed": now["seed"]}))
    before, after = _by_role(then["inputs"]), _by_role(now["inputs"])
    for role in dict.fromkeys((*before, *after)):
        old, new = before.get(role), after.get(role)
        location = f"{stage.spec.section}.{role}" if role.partition(".")[0] in stage.spec.accepts else role
        if old is None or new is None:
            message = "was not an input when the run started." if old is None else "is no longer an input of the run."
            found.append(Issue("recipe.resume-changed", message, location, REVERT_HINT))
        elif _content(old) != _content(new):
            found.append(_input_issue(location, old, new))
    return found


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the package and device changes that may keep a resumed run from being bit-identical."""
    found = [
        f"{name} was {then['packages'].get(name)} when the run started and is now {version}"
        for name, version in now["packages"].items()
        if then["packages"].get(name) != version
    ]
    if then["device"] != now["device"]:
        found.append(f"the device was {then['device']} when the run started and is now {now['device']}")
    return found


def _version(package: str) -> str | None:
    """Return the installed version, or None: bitsandbytes is only needed for quantized bases."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _diff(key: str, then: Any, now: Any) -> Iterator[Issue]:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*then, *now)):
            yield from _diff(f"{key}.{name}".strip("."), then.get(name), now.get(name))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _diff(f"{key}.{index}" if len(then) > 1 else key, old, new)
    elif then != now:
        message = f"was {json.dumps(then)} when the run started and is now {json.dumps(now)}."
        yield Issue("recipe.resume-changed", message, key, REVERT_HINT)


def _by_role(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return inputs by role. A role of several inputs (sources of one dataset) is numbered."""
    found: dict[str, Mapping[str, Any]] = {}
    for item in inputs:
        role, number = item["role"], 1
        while role in found:
            number += 1
            role = f"{item['role']} ({number})"
        found[role] = item
    return found


def _content(item: Mapping[str, Any]) -> str:
    """Return what identifies an input's content, as in `fingerprint`."""
    return item["sha256"] or item["ref"]


def _input_issue(location: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Issue:
    if old["version"] == new["version"]:
        message = f"the content of {new['path']} changed since the run started."
        return Issue("recipe.resume-changed", message, location, REVERT_HINT)
    fix = "Revert the change"
    if old["kind"] == "run":
        fix = f"Use {old['ref'].partition('@')[0]}@{old['version']} to resume"
    message = f"{old['ref']} was {old['version']} when the run started and is now {new['version']}."
    return Issue("recipe.resume-changed", message, location, f"{fix}, or start a new run without --resume.")
