"""Each issue of the machine, through a stage: exit code 5 or 6, the hint, no traceback, and what is left behind."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from rlhf_cli.runs.layout import claim
from rlhf_cli.runs.lock import acquire_lock
from tests.support.command import Rlhf

from .test_catalogue_model import base as base  # a small recipe for every stage

VERSION = Path("runs/bot/sft/v0001")


def told(rlhf: Rlhf, *words: str, code: int) -> str:
    """The one issue of a stage that ends with `code`: where, what, hint."""
    ended = rlhf("sft", "-r", "r.yaml", *words, "--json")
    assert ended.code == code
    (issue,) = ended.json["issues"]
    assert "Traceback" not in ended.err
    return f"{issue['location']}  {issue['message']}  {issue['hint']}"


@pytest.mark.parametrize(
    ("setting", "location", "hint"),
    [
        ("base.dtype=float16", "base.dtype", "Set auto, or float32"),
        ("base.attention=flash_attention_2", "base", "base.attention: auto"),
    ],
)
@pytest.mark.usefixtures("base")
def test_what_this_machine_lacks_is_told_and_nothing_made(rlhf: Rlhf, setting: str, location: str, hint: str) -> None:
    found = told(rlhf, "--set", setting, code=5)
    assert location in found
    assert hint in found
    assert not VERSION.exists()


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.usefixtures("base")
def test_a_base_of_fewer_bits_needs_bitsandbytes(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, bits: str) -> None:
    from transformers.quantizers import quantizer_bnb_4bit, quantizer_bnb_8bit

    for module, name in ((quantizer_bnb_4bit, "Bnb4BitHfQuantizer"), (quantizer_bnb_8bit, "Bnb8BitHfQuantizer")):

        def absent(self: object, *args: object, **kwargs: object) -> None:
            raise ImportError("Using `bitsandbytes` requires it to be installed.")

        monkeypatch.setattr(getattr(module, name), "validate_environment", absent)
    found = told(rlhf, "--set", f"base.quantize={bits}", code=5)
    assert "bitsandbytes" in found
    assert "base.quantize: none" in found
    assert not VERSION.exists()


@pytest.mark.usefixtures("base")
def test_a_runs_folder_that_cannot_be_made_is_told(rlhf: Rlhf) -> None:
    Path("file").touch()
    found = told(rlhf, "--runs-dir", "file/runs", code=6)
    assert "--runs-dir" in found


@pytest.mark.usefixtures("base")
def test_a_disk_that_is_read_only(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    found = told(rlhf, code=6)
    assert "ead-only" in found
    assert "--runs-dir" in found


@pytest.mark.skipif(sys.platform == "win32", reason="locks are flock's")
@pytest.mark.usefixtures("base")
def test_the_lock_of_a_dead_process_holds_nobody_up(rlhf: Rlhf) -> None:
    child = os.fork()
    if child == 0:
        acquire_lock(claim(Path("runs").absolute(), "bot", "sft"), new=True)
        os._exit(0)  # without letting go
    os.waitpid(child, 0)
    assert (VERSION / ".lock").exists()
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert ended.code == 0
    assert ended.json["path"].endswith("v0002")
    assert rlhf("runs", "rm", "sft@v0001").code == 0
    assert not VERSION.exists()
