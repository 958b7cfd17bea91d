"""compose.yaml says what deploy/README.md promises, in the compose specification's own terms."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from protos.flags import DRAIN_TIMEOUT

DEPLOY = Path(__file__).parents[2] / "deploy"
Services = dict[str, dict[str, Any]]
OURS = ["model", "scheduler", "worker", "worker-gpu", "router"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> Services:
    found: Services = compose["services"]
    return found


def test_it_is_valid_by_the_specifications_schema() -> None:
    checked = _check_schema(DEPLOY / "compose.yaml")
    assert checked.returncode == 0, checked.stdout


def test_the_schema_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {worker: {imag: typo}}")
    assert _check_schema(tmp_path / "compose.yaml").returncode != 0


def test_every_build_and_mounted_file_exists(services: Services) -> None:
    for service in services.values():
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).is_file()


def test_every_named_volume_is_declared(compose: dict[str, Any], services: Services) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    named = {mount.partition(":")[0] for mount in mounts} - {m for m in mounts if m[0] == "."}
    named = {name for name in named if not name.startswith(".")}
    assert named == set(compose["volumes"])


def test_what_scales_publishes_no_port_and_has_no_fixed_name(services: Services) -> None:
    for name in OURS:
        assert "ports" not in services[name], name
        assert "container_name" not in services[name], name
        assert "hostname" not in services[name], name


def test_only_the_proxy_and_prometheus_are_published_and_on_loopback_by_default(
    services: Services,
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"proxy", "prometheus"}
    for ports in published.values():
        assert all(port.startswith("${QUIRE_BIND:-127.0.0.1}:") for port in ports)


def test_prometheus_has_the_key_that_the_routers_metrics_ask_for(
    compose: dict[str, Any], services: Services
) -> None:
    [mounted] = services["prometheus"]["configs"]
    assert "${QUIRE_API_KEY:-" in compose["configs"][mounted["source"]]["content"]
    assert "${QUIRE_API_KEY:-" in services["router"]["environment"]["QUIRE_API_KEY"]
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    keys = {job["job_name"]: job.get("authorization") for job in jobs}
    assert keys["router"] == {"credentials_file": mounted["target"]}


def test_who_dials_the_scheduler_has_its_token_and_it_must_be_set(services: Services) -> None:
    for name in ("scheduler", "worker", "worker-gpu", "router"):
        said = services[name]["environment"]["QUIRE_CLUSTER_TOKEN"]
        assert said.startswith("${QUIRE_CLUSTER_TOKEN:?"), name


def test_workers_and_routers_dial_the_scheduler_once_it_is_healthy(services: Services) -> None:
    for name in ("worker", "worker-gpu", "router"):
        service = services[name]
        command = service["command"]
        assert command[command.index("--scheduler") + 1] == "scheduler:50051"
        assert service["depends_on"] == {
            "model": {"condition": "service_completed_successfully"},
            "scheduler": {"condition": "service_healthy"},
        }


def test_every_service_uses_the_same_model(services: Services) -> None:
    models = {services["model"]["command"][0]}
    models |= {services[name]["command"][1] for name in ("worker", "worker-gpu", "router")}
    assert models == {"${QUIRE_MODEL:-smollm2}"}


def test_the_gpu_worker_waits_for_its_profile_and_reserves_a_device(services: Services) -> None:
    gpu = services["worker-gpu"]
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["profiles"] == ["gpu"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert gpu["build"]["args"] == {"TORCH_INDEX": ""}
    assert "cuda" in gpu["command"]


def test_what_a_request_passes_through_ends_no_sooner_than_its_router(services: Services) -> None:
    def grace_s(name: str) -> int:
        return int(services[name]["stop_grace_period"].removesuffix("s"))

    assert grace_s("proxy") >= grace_s("router") > DRAIN_TIMEOUT.default
    assert grace_s("scheduler") > DRAIN_TIMEOUT.default
    assert services["proxy"]["stop_signal"] == "SIGUSR1"  # HAProxy's wish to finish


def test_ours_run_without_privileges(services: Services) -> None:
    for name in OURS:
        service = services[name]
        if name == "model":  # it writes the volume
            continue
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_prometheus_finds_every_scaled_service_by_name(services: Services) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    names = {
        name
        for job in config["scrape_configs"]
        for discovery in job["dns_sd_configs"]
        for name in discovery["names"]
    }
    assert names == {"router", "scheduler", "worker", "worker-gpu", "proxy"}
    assert names <= set(services)


def test_the_proxy_asks_routers_whether_they_are_ready() -> None:
    config = (DEPLOY / "haproxy.cfg").read_text()
    backends = re.findall(r"server-template router \d+ router:(\d+) .*resolvers docker", config)
    assert backends == ["8000", "8000", "50050", "50050"]
    assert re.findall(r"option httpchk GET (.*)", config) == ["/ready", "/health"] * 2
    # /ready is HTTP/1.1 also where the requests are HTTP/2.
    assert "proto h2 resolvers docker init-addr none check port 8000 check-proto h1" in config


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_the_proxys_own_program_accepts_its_configuration() -> None:
    command = ["haproxy", "-c", "-f", str(DEPLOY / "haproxy.cfg")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_scrapes_the_ports_that_the_images_expose() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in config["scrape_configs"]}
    for component in ("router", "scheduler", "worker"):
        exposed = re.search(r"^EXPOSE (.*)$", _dockerfile(component), re.M)
        assert exposed is not None
        assert str(ports[component]) in exposed[1].split()


@pytest.mark.parametrize("component", ["router", "scheduler", "worker"])
def test_every_image_has_a_user_a_health_check_and_an_array_entrypoint(component: str) -> None:
    text = _dockerfile(component)
    assert re.search(r"^USER quire$", text, re.M)
    assert "HEALTHCHECK" in text
    entrypoint = re.search(r"^ENTRYPOINT (.*)$", text, re.M)
    assert entrypoint is not None
    assert isinstance(json.loads(entrypoint[1]), list)


def _dockerfile(component: str) -> str:
    return (DEPLOY / f"Dockerfile.{component}").read_text()


def _check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    schema = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run(
        [sys.executable, *schema, str(path)], capture_output=True, text=True, check=False
    )
