"""Image and compose file: linted, held to their rules, and consistent with the files they mount.

No engine runs here, so nothing is built. The Dockerfile is checked by hadolint, the compose file against the published
schema, the configs of Prometheus and Alertmanager by their own programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from streambatch.durability.options import Delivery
from streambatch.version import __version__
from tests.deploy.units import ROOT
from tests.e2e.running import running, scores_in
from tests.grafana.prometheus import Prometheus
from tests.programs import needs

DOCKERFILE, COMPOSE = ROOT / "deploy/docker/Dockerfile", ROOT / "deploy/compose"
TOOLS = Path(sys.executable).parent
needs_hadolint = pytest.mark.skipif(not (TOOLS / "hadolint").exists(), reason="there is no hadolint for this machine")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return found


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", "")
    lines = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in lines]


def runtime() -> list[tuple[str, str]]:
    """Return those of the last stage."""
    found = instructions()
    return found[max(at for at, (word, _) in enumerate(found) if word == "FROM") :]


@needs_hadolint
def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [TOOLS / "hadolint", "--no-color", "--failure-threshold", "style", DOCKERFILE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_needs_no_shell_and_no_root() -> None:
    found = dict(runtime())
    assert not [rest for word, rest in runtime() if word == "RUN"]
    assert found["USER"] == "10001:10001"
    assert found["STOPSIGNAL"] == "SIGTERM"
    for word in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(found[word]), list)
    probe = found["HEALTHCHECK"].partition("CMD ")[2]
    assert json.loads(probe) == ["streambatch", "health"]
    state = json.loads(found["VOLUME"])
    assert f"STATE_DIRECTORY={state[0]}" in found["ENV"]
    assert "CREDENTIALS_DIRECTORY=/run/secrets" in found["ENV"]


def test_the_image_is_made_of_what_it_is_given() -> None:
    """What the builder copies is in the context; nothing else is."""
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--")
        for source in rest.split()[:-1]
    }
    assert copied == set(context())
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.slow
def test_a_wheel_can_be_built_of_what_is_given(tmp_path: Path) -> None:
    for source in (given for given in context() if not given.startswith(".ci")):
        copy: Any = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*build, "--wheel-dir", "made"], cwd=tmp_path, check=True, timeout=50)
    assert [path.name for path in (tmp_path / "made").iterdir()] == [f"streambatch-{__version__}-py3-none-any.whl"]


def context() -> list[str]:
    """Return what the image may be made of."""
    lines = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_the_schema_allows_the_compose_file() -> None:
    done = subprocess.run(
        [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE / "compose.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["streambatch", "prometheus", "alertmanager", "grafana"])
def test_each_service_is_confined_and_watched(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
    assert name == "streambatch" or service["healthcheck"]["test"][0] == "CMD"
    assert not any("docker.sock" in str(volume) for volume in service["volumes"])


def test_what_the_compose_file_names_is_there() -> None:
    text = compose()
    for name, service in text["services"].items():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in text["volumes"] or (COMPOSE / source).exists(), f"{name}: {source}"
        assert all(config["source"] in text["configs"] for config in service.get("configs", []))
        assert set(service.get("secrets", [])) <= set(text["secrets"])
    # Engines put nothing but files into a container whose root is read-only.
    assert all(set(one) == {"file"} for one in [*text["configs"].values(), *text["secrets"].values()])
    assert all((COMPOSE / config["file"]).exists() for config in text["configs"].values())
    daemon = text["services"]["streambatch"]
    assert daemon["image"] == f"streambatch:{__version__}"
    assert (COMPOSE / daemon["build"]["context"] / daemon["build"]["dockerfile"]).resolve() == DOCKERFILE
    assert int(daemon["stop_grace_period"].rstrip("s")) > Delivery().drain_timeout + 10
    assert daemon["init"] is True


def test_grafana_finds_data_source_and_dashboards() -> None:
    grafana = compose()["services"]["grafana"]
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    (provider,) = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/streambatch.yml").read_text())["providers"]
    assert mounted["../../grafana/dashboards"] == provider["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (ROOT / "grafana/dashboards" / home.name).exists()
    source = (ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert all(name in grafana["environment"] for name in re.findall(r"\$(\w*URL)", source))
    assert "prometheus" in compose()["services"]


@needs("promtool")
def test_prometheus_takes_its_config(tmp_path: Path) -> None:
    shutil.copy(COMPOSE / "prometheus.yml", tmp_path)
    (tmp_path / "rules").mkdir()
    for volume in compose()["services"]["prometheus"]["volumes"]:
        source, target, *_ = volume.split(":")
        if target.startswith("/etc/prometheus/rules/"):
            shutil.copy(COMPOSE / source, tmp_path / "rules")
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rules found") == 2
    scraped = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    jobs = {job["job_name"]: job["static_configs"] for job in scraped}
    assert jobs["streambatch"] == [{"targets": ["streambatch:9464"]}]


@needs("amtool")
def test_alertmanager_takes_its_config() -> None:
    done = subprocess.run(
        ["amtool", "check-config", COMPOSE / "alertmanager.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs("prometheus", "prometheus-alertmanager")
def test_prometheus_knows_all_it_is_told_of(tmp_path: Path) -> None:
    daemon_folder = tmp_path / "daemon"
    daemon_folder.mkdir()
    for name in ("prometheus", "alertmanager"):
        write_mounts(name, tmp_path)
    daemon_at, prometheus_at, alertmanager_at = free_addresses(3)
    told = tmp_path / "etc/prometheus/prometheus.yml"
    text = told.read_text().replace("streambatch:9464", daemon_at).replace("127.0.0.1:9090", prometheus_at)
    told.write_text(text.replace("alertmanager:9093", alertmanager_at).replace("15s", "1s"))
    config = EMPTY_FEED.replace("ADDRESS", daemon_at)
    with (
        running(daemon_folder, config) as daemon,
        service("alertmanager", "prometheus-alertmanager", alertmanager_at, tmp_path) as alertmanager,
        service("prometheus", "prometheus", prometheus_at, tmp_path) as prometheus,
    ):
        daemon.event("admin_listening")
        alertmanager.until_ready()
        prometheus.until_ready()
        prometheus.until('count(up == 1) == 2 and on () up{job="streambatch"}')
        prometheus.until("count({__name__=~'.+:.+'}) > 0")
        prometheus.until("prometheus_notifications_alertmanagers_discovered == 1")
        (known,) = prometheus.ask("alertmanagers")["activeAlertmanagers"]
        assert known["url"] == f"http://{alertmanager_at}/api/v2/alerts"
        files = {Path(group["file"]).name for group in prometheus.ask("rules")["groups"]}
        assert files == {"recording.yml", "alerts.yml"}


EMPTY_FEED = """
name = "rides"
source.live = { type = "tcp", listen = "127.0.0.1:0" }
record.features = ["km"]
model = { type = "python", path = "statistics:mean" }
sink.scores.type = "none"
http.listen = "ADDRESS"
"""


def free_addresses(count: int) -> list[str]:
    """Return addresses on loopback that nobody listens on."""
    with ExitStack() as free:
        found = [free.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in found]


def write_mounts(name: str, root: Path) -> None:
    """Copy the files that a service has mounted to where it looks for them, under `root`."""
    for volume in compose()["services"][name]["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith("."):
            copy = root / target.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(COMPOSE / source, copy)


@contextmanager
def service(name: str, program: str, address: str, root: Path) -> Iterator[Prometheus]:
    """Run a service with the arguments that the compose file gives it, its paths under `root`."""
    arguments = [flag.replace("=/", f"={root}/") for flag in compose()["services"][name]["command"]]
    log = root / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, *arguments, f"--web.listen-address={address}"], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield Prometheus(process, f"http://{address}", log)
    finally:
        process.kill()
        process.wait()


def test_one_command_makes_secrets_once_and_starts_it_all(tmp_path: Path) -> None:
    shutil.copy(COMPOSE / "up", tmp_path)
    (tmp_path / "docker").write_text('#!/bin/sh\necho "$PWD: $*"\n')
    (tmp_path / "docker").chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    secrets = []
    for _ in range(2):
        done = subprocess.run([tmp_path / "up", "--pull"], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout == f"{tmp_path}: compose up --detach --build --wait --pull\n"
        secrets.append({path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()})
    assert secrets[0] == secrets[1]
    assert set(secrets[0]) == set(compose()["secrets"])
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets[0].values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_the_config_of_the_compose_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/ADMIN_TOKEN").write_text("open-sesame")
    shutil.copy(COMPOSE / "fares.py", tmp_path)
    for name, value in {
        "PYTHONPATH": tmp_path, "STATE_DIRECTORY": tmp_path, "CREDENTIALS_DIRECTORY": tmp_path / "secrets",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    config = (COMPOSE / "rides.toml").read_text().replace("0.0.0.0:9000", "127.0.0.1:0")
    with running(tmp_path, config.replace("0.0.0.0:9464", "127.0.0.1:0")) as daemon:
        with socket.create_connection(daemon.address("live")) as client:
            client.sendall(b'{"ride": 1, "km": 5, "minutes": 14, "riders": 1.5}\n')
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        assert daemon.stop() == 0, daemon.rest()
    (score,) = scores_in(tmp_path / "scores.jsonl")
    assert score == {"id": 1, "score": pytest.approx(20.0)}


def test_examples_of_the_model_are_one() -> None:
    models = [path.read_bytes() for path in (ROOT / "deploy").rglob("fares.py")]
    assert len(models) == 3
    assert len(set(models)) == 1
