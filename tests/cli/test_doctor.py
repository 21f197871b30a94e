"""Tests of `rlhf doctor`: every check reports what it found and how to fix it, and none raises."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from rlhf_cli.cli import doctor_checks
from rlhf_cli.cli.doctor_checks import CHECKS, CheckResult
from tests.support.command import Rlhf

SECRET = "hf_secret_of_a_person"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a Hub cache with one model of 3 MB and no token. The tests are offline."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    model = folder / "models--org--small"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "blobs").mkdir()
    (model / "blobs" / "b").write_bytes(b"0" * 3_000_000)
    (model / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (model / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to("../../blobs/b")
    for name, value in (("HF_HUB_CACHE", folder), ("HF_TOKEN_PATH", tmp_path / "token")):
        monkeypatch.setattr(constants, name, str(value))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


def no_results(_runs_dir: Path) -> Iterator[CheckResult]:
    """Stand for a check that takes long."""
    return iter(())


def by_name(results: Iterator[CheckResult]) -> dict[str, CheckResult]:
    return {result.name: result for result in results}


def test_doctor_on_working_machine_exits_0_with_one_object(rlhf: Rlhf, tmp_path: Path) -> None:
    result = rlhf("doctor", "--json")
    assert result.code == 0, result.err
    assert {name: result.json[name] for name in ("status", "stage")} == {"status": "ok", "stage": "doctor"}
    checks = {check["name"]: check for check in result.json["checks"]}
    for name in doctor_checks.PACKAGES:
        assert (checks[name]["state"], checks[name]["found"]) == ("ok", metadata.version(name))
    assert {checks[name]["state"] for name in ("cpu", "nf4", "int8", "bfloat16")} == {"ok"}
    assert checks["runs directory"]["found"].startswith(f"{tmp_path}/runs: ")
    assert "HF_HUB_OFFLINE is set" in checks["connection"]["found"]
    assert checks["cached models"]["found"] == "org/small (3 MB)"
    assert checks["token"]["state"] == "missing"
    assert all(check["hint"] for check in result.json["checks"] if check["state"] != "ok")
    assert not (tmp_path / "runs").exists()


def test_doctor_prints_one_line_per_check_and_a_verdict(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    result = rlhf("doctor")
    assert result.code == 0
    lines = result.out.splitlines()
    assert f"ok       packages  torch          {metadata.version('torch')}" in lines
    assert "ok       hub       token          HF_TOKEN is set" in lines
    assert lines[-1] == "All required checks passed."
    assert SECRET not in result.out + result.err


def test_package_that_cannot_be_imported_fails_with_alternative(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it then raises ModuleNotFoundError
    result = rlhf("doctor", "--json")
    assert result.code == 0
    checks = {check["name"]: check for check in result.json["checks"]}
    assert checks["bitsandbytes"]["state"] == "fail"
    assert "but the import fails: ModuleNotFoundError" in checks["bitsandbytes"]["found"]
    assert "pip install --force-reinstall" in checks["bitsandbytes"]["hint"]
    assert checks["bitsandbytes"]["hint"].endswith("or set `base.quantize: none`.")
    assert checks["nf4"]["state"] == checks["int8"]["state"] == "fail"
    assert "`base.quantize: none`" in checks["nf4"]["hint"]
    assert checks["bfloat16"]["state"] == "ok"
    assert "Traceback" not in result.err


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Return a mapping of packages to the versions that they seem to have; None: not installed."""
    changed: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        found = changed.get(name, real(name))
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda _: ["trl<2,>=1.16", "bitsandbytes>=0.50", "x; extra == 'dev'"])
    return changed


def test_missing_required_packages_exit_5_with_all_checks(
    rlhf: Rlhf, versions: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions |= {"trl": "1.12.0", "peft": None}
    monkeypatch.setitem(CHECKS, "kernels", no_results)
    result = rlhf("doctor", "--json")
    assert result.code == 5
    assert (result.json["status"], result.json["exit_code"]) == ("error", 5)
    assert result.json["issues"] == [
        {
            "code": "hardware.check-failed",
            "message": "not installed.",
            "location": "peft",
            "hint": 'Run `pip install "peft"`.',
        },
        {
            "code": "hardware.check-failed",
            "message": "1.12.0, expected <2,>=1.16.",
            "location": "trl",
            "hint": 'Run `pip install "trl<2,>=1.16"`.',
        },
    ]
    assert len(result.json["checks"]) > 10
    assert result.codes == ["hardware.check-failed"] * 2


def test_missing_optional_package_is_not_required(versions: dict[str, str | None]) -> None:
    versions["bitsandbytes"] = None
    result = by_name(doctor_checks.check_packages())["bitsandbytes"]
    assert (result.state, result.required) == ("missing", False)
    assert 'pip install "bitsandbytes>=0.50"' in result.hint


@pytest.mark.usefixtures("stand_ins")
def test_stage_runs_without_optional_package(rlhf: Rlhf, recipe_file: Path, versions: dict[str, str | None]) -> None:
    versions["bitsandbytes"] = None
    result = rlhf("sft", "-r", recipe_file, "--json")
    assert result.code == 0, result.err
    manifest = json.loads((Path(result.json["path"]) / "manifest.json").read_text())
    assert manifest["packages"]["bitsandbytes"] is None
    assert manifest["packages"]["torch"] == metadata.version("torch")


def test_kernel_with_wrong_gradient_or_no_implementation_fails() -> None:
    """bitsandbytes' bfloat16 kernel once gave the right output without a gradient."""
    import torch

    class HalfGradient(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            output = super().forward(input)
            return output.detach() + 0.5 * (output - output.detach())

    def half_gradient(weight: torch.Tensor) -> torch.nn.Module:
        layer = HalfGradient(64, 64, bias=False)
        layer.weight = torch.nn.Parameter(weight)
        return layer

    def unavailable(_weight: torch.Tensor) -> torch.nn.Module:
        raise RuntimeError("no kernel image\nis available")

    layers = {**doctor_checks.kernel_layers(), "nf4": half_gradient, "int8": unavailable}
    results = by_name(doctor_checks.check_kernels(layers))
    assert results["nf4"].state == "fail"
    assert "error 50.0% compared with float32, expected at most 15%" in results["nf4"].found
    assert (results["int8"].state, results["int8"].found) == ("fail", "fails on cpu: RuntimeError: no kernel image")
    assert results["bfloat16"].state == "ok"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_tolerance_accepts_rounding_of_quantization_and_not_four_times_its_error(kind: str) -> None:
    """The errors of 20 draws are below the tolerance, which is below four times the smallest of them."""
    import torch

    layer = doctor_checks.kernel_layers()[kind]
    errors = []
    for seed in range(20):
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(99))
        true = inputs @ weight.T
        errors.append(float((layer(weight).to("cpu")(inputs) - true).norm() / true.norm()))
    assert max(errors) < doctor_checks.TOLERANCES[kind]
    assert doctor_checks.TOLERANCES[kind] < 4 * min(errors)


def test_missing_gpu_fails_only_if_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    cpu_build, cuda_build = doctor_checks.explain_missing_gpu(None), doctor_checks.explain_missing_gpu("12.9")
    assert cpu_build.state == cuda_build.state == "fail"
    assert "built without CUDA" in cpu_build.found
    assert "built for CUDA 12.9, finds no GPU" in cuda_build.found
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert doctor_checks.explain_missing_gpu(None).state == "missing"


def test_runs_directory_that_is_not_writable_exits_5(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS, "kernels", no_results)
    monkeypatch.setitem(CHECKS, "packages", no_results)
    result = rlhf("doctor", "--runs-dir", "r.yaml/runs")
    assert (result.code, result.codes) == (5, ["hardware.check-failed"])
    assert "r.yaml/runs is not writable. Choose another one with --runs-dir" in result.err
    assert "All required checks passed" not in result.out


def test_little_free_space_fails_but_is_not_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
    result = doctor_checks.check_folder("runs directory", tmp_path, "Move it.", required=True)
    assert (result.state, result.required, result.hint) == ("fail", False, "Free up space. Move it.")
    assert "1.0 GB free" in result.found


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub client send requests, which HF_HUB_OFFLINE of the tests forbids."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (503, "missing")])
def test_hub_is_asked_at_its_endpoint_and_the_password_is_not_shown(status: int, state: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        result = doctor_checks.check_reachable(f"http://me:{SECRET}@127.0.0.1:{hub.server_port}", offline=False)
        hub.shutdown()
        thread.join()
    assert result.state == state
    assert result.found.startswith(f"http://127.0.0.1:{hub.server_port} responded")
    assert SECRET not in str(result)


@pytest.mark.usefixtures("online")
def test_hub_that_cannot_be_reached_is_missing_and_not_required() -> None:
    result = doctor_checks.check_reachable("http://127.0.0.1:9", offline=False)  # the discard port: no listener
    assert (result.state, result.required) == ("missing", False)
    assert result.found.startswith("http://127.0.0.1:9 cannot be reached (ConnectError); only cached models")
    assert "HF_HUB_OFFLINE=1" in result.hint


def test_damaged_cache_entry_fails_and_hides_no_model(cache: Path) -> None:
    (cache / "models--org--broken").mkdir()
    results = list(doctor_checks.check_cache())
    assert [result.state for result in results] == ["ok", "fail"]
    assert "models--org--broken" in results[1].found


def test_check_that_raises_fails_and_others_still_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_runs_dir: Path) -> Iterator[CheckResult]:
        raise AttributeError("no such thing")

    for group in ("packages", "devices", "kernels"):
        monkeypatch.setitem(CHECKS, group, broken)
    results = by_name(doctor_checks.run_checks(tmp_path))
    assert (results["devices"].state, results["devices"].found) == (
        "fail",
        "check failed: AttributeError: no such thing",
    )
    assert {"runs directory", "connection"} <= results.keys()
