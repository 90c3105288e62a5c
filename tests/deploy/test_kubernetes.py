"""The manifests are what the published schemas allow, confined as the standard `restricted` asks, and fit together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streambatch.durability.options import Delivery
from tests.deploy.kustomize import HASH, Manifest, build
from tests.deploy.units import ROOT
from tests.e2e.running import running, scores_in

KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = sorted((KUBERNETES / "overlays").iterdir())
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
VERSIONS = ("1.31", "1.34")
"""Of Kubernetes: an old one that is still met, and a newer one."""
UNKNOWN_KINDS = {"PodMonitor"}
"""Custom resources, of which no schema is at hand."""


def pods_of(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield each pod template."""
    for manifest in manifests:
        if manifest["kind"] == "StatefulSet":
            yield manifest["spec"]["template"]
        elif manifest["kind"] == "CronJob":
            yield manifest["spec"]["jobTemplate"]["spec"]["template"]


def selectors_of(manifest: Manifest) -> dict[str, str]:
    """Return the labels of the pods that a manifest is about."""
    spec = manifest["spec"]
    selector: dict[str, Any] = spec.get("podSelector") or spec.get("selector") or {}
    found: dict[str, str] = selector.get("matchLabels", selector)
    return found


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


@each_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_allow_them(overlay: Path, version: str, tmp_path: Path) -> None:
    manifests = [one for one in build(overlay) if one["kind"] not in UNKNOWN_KINDS]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(manifests))
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", version, tmp_path / "all.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count(" passed ") == len(manifests), said


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs a kubectl that knows `labels`; Debian's is older")
@each_overlay
def test_kustomize_makes_the_same_of_them(overlay: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=True)
    text = re.sub(r"(-config)-[a-z0-9]{10}\b", rf"\1-{HASH}", done.stdout)
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}
    assert by_name == {(one["kind"], one["metadata"]["name"]): one for one in build(overlay)}


@each_overlay
def test_pods_are_restricted(overlay: Path) -> None:
    """The rules of the pod security standard `restricted`, and a root that can't be written to."""
    for pod in pods_of(build(overlay)):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        kinds = {key for volume in spec["volumes"] for key in volume} - {"name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is security["runAsNonRoot"] is True
            assert not security.get("privileged")
            assert not any("hostPort" in port for port in container["ports"])
            assert container["resources"]["limits"]["memory"]
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"]


@each_overlay
def test_they_fit_each_other(overlay: Path) -> None:
    manifests = build(overlay)
    names = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    assert len(names) == len(manifests)
    for pod in pods_of(manifests):
        labels, spec = pod["metadata"]["labels"], pod["spec"]
        (container,) = spec["containers"]
        ports = {port["name"] for port in container["ports"]}
        for manifest in manifests:
            if manifest["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "StatefulSet"):
                assert selectors_of(manifest)
                assert selectors_of(manifest).items() <= labels.items(), manifest["metadata"]
        for service in of_kind(manifests, "Service"):
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        for monitor in of_kind(manifests, "PodMonitor"):
            assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
        assert spec["terminationGracePeriodSeconds"] > Delivery().drain_timeout + 10


def test_what_is_there() -> None:
    stream, batch = (build(KUBERNETES / "overlays" / name) for name in ("stream", "batch"))
    base = {"ServiceAccount", "NetworkPolicy", "PodMonitor", "ConfigMap"}
    assert {one["kind"] for one in stream} == base | {
        "StatefulSet", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler",
    }  # fmt: skip
    assert {one["kind"] for one in batch} == base | {"CronJob", "PersistentVolumeClaim"}
    (autoscaler,), (stateful,) = of_kind(stream, "HorizontalPodAutoscaler"), of_kind(stream, "StatefulSet")
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", stateful["metadata"]["name"])
    assert "replicas" not in stateful["spec"], "the autoscaler's"
    assert stateful["spec"]["serviceName"] in {one["metadata"]["name"] for one in of_kind(stream, "Service")}


def test_both_can_live_in_one_namespace() -> None:
    """What both overlays bring is the same, and no selector of one takes the other's pods for its own."""
    stream, batch = (build(KUBERNETES / "overlays" / name) for name in ("stream", "batch"))
    theirs = {(one["kind"], one["metadata"]["name"]): one for one in batch}
    for manifest in stream:
        assert theirs.get((manifest["kind"], manifest["metadata"]["name"]), manifest) == manifest
    (pod,) = pods_of(batch)
    for manifest in stream:
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "StatefulSet"):
            assert not selectors_of(manifest).items() <= pod["metadata"]["labels"].items()


def test_the_autoscaler_s_metric_is_made_of_metrics_that_are_there() -> None:
    rules = yaml.safe_load((KUBERNETES / "overlays/stream/metrics-adapter.yaml").read_text())["rules"]["custom"]
    (autoscaler,) = of_kind(build(KUBERNETES / "overlays/stream"), "HorizontalPodAutoscaler")
    (metric,) = autoscaler["spec"]["metrics"]
    assert [rule["name"]["as"] for rule in rules] == [metric["pods"]["metric"]["name"]]
    catalogue = (ROOT / "docs/reference/metrics.md").read_text()
    for name in re.findall(r"streambatch_\w+(?=\{)", json.dumps(rules)):
        assert name in catalogue, name


@pytest.mark.slow
def test_the_batch_config_runs_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = staged(KUBERNETES / "overlays/batch", tmp_path, monkeypatch)
    (tmp_path / "in").mkdir()
    for night in (1, 2):
        (tmp_path / f"in/{night}.jsonl").write_text(f'{{"ride": {night}, "km": 5, "minutes": 14, "riders": 1}}\n')
        with running(tmp_path, config, "--set", "http.listen=off") as daemon:
            assert daemon.wait() == 0, daemon.rest()
    assert [score["id"] for score in scores_in(tmp_path / "scores.jsonl")] == [1, 2]


@pytest.mark.slow
def test_the_stream_config_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = staged(KUBERNETES / "overlays/stream", tmp_path, monkeypatch).replace("0.0.0.0:9000", "127.0.0.1:0")
    with running(tmp_path, config, "--set", "http.listen=127.0.0.1:0") as daemon:
        daemon.event("state_changed", state="running")
        assert daemon.get("/readyz") == (200, b"ok\n")
        assert daemon.stop() == 0


def staged(overlay: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put an overlay's model beside the config, set what the image sets, and return the config."""
    shutil.copy(overlay / "fares.py", folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("STATE_DIRECTORY", str(folder))
    return (overlay / "pipeline.toml").read_text()
