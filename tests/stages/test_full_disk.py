"""A full disk ends a run with exit code 6, leaves earlier versions whole, and does no harm once there is space."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import logged_values, start_rlhf

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

SCRIPT_ON_SMALL_DISK = """
mount -t tmpfs -o size=3m none runs
rlhf() {{ {python} -m rlhf_cli "$@" --json; echo "ended with $?"; }}
rlhf sft -r recipe.yaml --set launch.processes=1
dd if=/dev/zero of=runs/filler bs=1024 count="$(($(df --output=avail runs | tail -1) - 60))" status=none
rlhf sft -r recipe.yaml --set launch.processes=1 --set seed=1
rlhf runs verify
rlhf runs list
rm runs/filler
rlhf sft -r recipe.yaml --set launch.processes=1 --set seed=1
rlhf runs verify
"""


def can_mount() -> bool:
    """Return whether a user namespace may mount a file system."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this machine does not let users mount a small disk")
def test_full_disk_ends_run_with_6_and_leaves_earlier_version_whole(launch_project: Path) -> None:
    (launch_project / "runs").mkdir()
    script = SCRIPT_ON_SMALL_DISK.format(python=sys.executable)
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=launch_project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout.splitlines()
    exit_codes = [int(line.removeprefix("ended with ")) for line in lines if line.startswith("ended with ")]
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    assert exit_codes == [0, 6, 0, 0, 0, 0], ended.stderr
    (issue,) = objects[1]["issues"]
    assert issue["code"] == "disk.full"
    assert "Free up space" in issue["hint"] or "--runs-dir" in issue["hint"]
    assert "Traceback" not in ended.stderr
    complete = [run["version"] for run in objects[3]["runs"] if run["state"] == "complete"]
    assert complete == ["v0001"]
    assert objects[4]["status"] == "ok"


def test_two_runs_started_at_once_get_two_versions(launch_project: Path) -> None:
    processes = [start_rlhf(launch_project, "sft", "--set", "launch.processes=1") for _ in range(2)]
    objects = [json.loads(process.communicate(timeout=200)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], objects
    runs = launch_project / "runs/t/sft"
    assert {Path(one["path"]).name for one in objects} == {"v0001", "v0002"}
    assert logged_values(runs / "v0001", "loss") == logged_values(runs / "v0002", "loss")
    assert (runs / "latest").resolve().name == "v0002"
