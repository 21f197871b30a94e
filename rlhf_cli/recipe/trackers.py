"""Know the experiment trackers of `trainer.report_to` and the packages that they need, without importing them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rlhf_cli.errors import Issue
from rlhf_cli.formatting import did_you_mean
from rlhf_cli.recipe.yaml_document import format_value

Trackers = Mapping[str, tuple[str, ...]]  # name to packages, of which one is enough

NO_TRACKER = (None, "none", "all")  # nothing, or whatever is installed
TRL_TRACKERS: Trackers = {  # of transformers
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),  # an environment variable decides
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
OWN_LOOP_TRACKERS: Trackers = {  # of accelerate
    "aim": ("aim",),
    "clearml": ("clearml",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def tracker_issue(key: str, value: Any, trackers: Trackers) -> Issue | None:
    """Return the issue of a `report_to` with an unknown tracker, without location, or None if there is none.

    Args:
        key: The recipe key.
        value: A name or a list of names; other types are reported elsewhere.
        trackers: The trackers that the stage supports.
    """
    unknown = [name for name in _names(value) if name not in trackers]
    if not unknown:
        return None
    message = f"{key}: unknown tracker; found {format_value(unknown[0])}, expected one of {', '.join(trackers)}."
    return Issue("recipe.invalid-value", message, hint=did_you_mean(str(unknown[0]), trackers))


def missing_packages(value: Any, trackers: Trackers) -> list[str]:
    """Return the packages that the trackers of a valid `report_to` need and that are not installed."""
    needed = [trackers[name] for name in _names(value)]
    return [packages[0] for packages in needed if packages and not any(map(find_spec, packages))]


def _names(value: Any) -> list[Any]:
    names = value if isinstance(value, list) else [value]
    return [name for name in names if name not in NO_TRACKER]
