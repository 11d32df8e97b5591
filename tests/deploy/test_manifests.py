"""The Kubernetes manifests and the image, judged without a cluster."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dask.config import collect_env
from dask.utils import parse_bytes
from distributed import config as distributed_config  # noqa: F401  # registers the names of its settings

from spatialscope_dist.engine import environment
from tests.deploy.kubernetes_schemas import Object, problems_of

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cluster", "job")


def objects_of(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each]


@cache
def _rendered(overlay: str) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the manifests, is not installed")
    folder = str(KUBERNETES / overlay)
    return subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout


def rendered(overlay: str) -> list[Object]:
    return objects_of(_rendered(overlay))


def written() -> list[Object]:
    files = sorted(KUBERNETES.glob("*/*.yaml"))
    return [each for file in files if file.name != "kustomization.yaml" for each in objects_of(file.read_text())]


def one(kind: str, name: str, objects: list[Object]) -> Object:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods_of(manifest: Object) -> Iterator[tuple[str, Object]]:
    """Yield the role and the pod of everything an object of Dask's kinds starts."""
    spec = manifest["spec"]
    match manifest["kind"]:
        case "DaskCluster":
            yield "scheduler", spec["scheduler"]["spec"]
            yield "worker", spec["worker"]["spec"]
        case "DaskWorkerGroup":
            yield "worker", spec["worker"]["spec"]
        case "DaskJob":
            yield "driver", spec["job"]["spec"]


PODS = {
    f"{manifest['kind']}-{role}": pod
    for manifest in written()
    if manifest["apiVersion"].startswith("kubernetes.dask.org/")
    for role, pod in pods_of(manifest)
}
WORKERS = [name for name in PODS if name.endswith("worker")]


def option(container: Object, name: str) -> str:
    return str(container["args"][container["args"].index(name) + 1])


def test_every_role__has_a_pod() -> None:
    assert set(PODS) == {"DaskCluster-scheduler", "DaskCluster-worker", "DaskWorkerGroup-worker", "DaskJob-driver"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendered_objects__satisfy_their_schemas(overlay: str) -> None:
    objects = rendered(overlay)
    assert {each["kind"] for each in objects} >= {"NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"}
    assert {each["metadata"]["name"]: problems_of(each) for each in objects if problems_of(each)} == {}


def test_written_objects__satisfy_their_schemas() -> None:
    complete = [each for each in written() if each["kind"] != "DaskJob"]
    assert {each["metadata"]["name"]: problems_of(each) for each in complete if problems_of(each)} == {}


def _worker(cluster: Object) -> Object:
    return cluster["spec"]["worker"]["spec"]


ERRORS: dict[str, Callable[[Object], Any]] = {
    "replicas as text": lambda cluster: cluster["spec"]["worker"].update(replicas="8"),
    "misspelt field": lambda cluster: cluster["spec"]["worker"].update(replica=8),
    "misspelt container field": lambda cluster: _worker(cluster)["containers"][0].update(arg=["dask"]),
    "no service": lambda cluster: cluster["spec"]["scheduler"].pop("service"),
    "toleration as text": lambda cluster: _worker(cluster).update(tolerations=["gpu"]),
    "text for a time": lambda cluster: cluster["spec"].update(idleTimeout="1h"),
    "port as text": lambda cluster: _worker(cluster)["containers"][0]["ports"][0].update(containerPort="8788"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_cluster__with_an_error__is_caught(error: str) -> None:
    cluster = copy.deepcopy(one("DaskCluster", "spatialscope", written()))
    ERRORS[error](cluster)
    assert problems_of(cluster) != []


def test_network_policy__with_an_error__is_caught() -> None:
    policy = copy.deepcopy(one("NetworkPolicy", "spatialscope-workers", written()))
    policy["spec"]["ingres"] = policy["spec"].pop("ingress")
    assert problems_of(policy) != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_operator__given_the_rendered_objects__makes_valid_ones(overlay: str) -> None:
    controller = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    made = []
    for manifest in rendered(overlay):
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        if manifest["kind"] == "DaskJob":
            made.append(controller.build_job_pod_spec(name, name, "lab", spec["job"]["spec"], {}, {}))
            spec = spec["cluster"]["spec"]
        if manifest["kind"] in {"DaskCluster", "DaskJob"}:
            pod, service = spec["scheduler"]["spec"], spec["scheduler"]["service"]
            made.append(controller.build_scheduler_deployment_spec(name, pod, {}, {}))
            made.append(controller.build_scheduler_service_spec(name, service, {}, {}))
        if manifest["kind"] in {"DaskCluster", "DaskJob", "DaskWorkerGroup"}:
            pod = spec["worker"]["spec"]
            made.append(controller.build_worker_deployment_spec(name, "lab", "spatialscope", "1", pod, {}, {}))
    assert len(made) == {"cluster": 4, "job": 5}[overlay]
    assert [problems_of(each) for each in made] == [[]] * len(made)


def test_job__rendered__has_the_cluster_and_no_second_one() -> None:
    objects = rendered("job")
    cluster = one("DaskCluster", "spatialscope", rendered("cluster"))
    assert one("DaskJob", "spatialscope", objects)["spec"]["cluster"]["spec"] == cluster["spec"]
    assert not [each for each in objects if each["kind"] == "DaskCluster"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_image__is_the_same_everywhere__and_named_once(overlay: str) -> None:
    image = yaml.safe_load((KUBERNETES / "image" / "kustomization.yaml").read_text())["images"][0]
    found = set(re.findall(r"image: (\S+)", _rendered(overlay)))
    assert found == {f"{image['newName']}:{image['newTag']}"}
    others = [file for file in KUBERNETES.glob("*/*.yaml") if file.parent.name != "image"]
    assert {name for file in others for name in re.findall(r"image: (\S+)", file.read_text())} == {image["name"]}


def test_image_tag__is_the_version_of_the_package() -> None:
    image = yaml.safe_load((KUBERNETES / "image" / "kustomization.yaml").read_text())["images"][0]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert image["newTag"].split("-")[0] == version


@pytest.mark.parametrize("name", WORKERS)
def test_worker__memory_limit__is_below_that_of_its_pod(name: str) -> None:
    (container,) = PODS[name]["containers"]
    limit = parse_bytes(option(container, "--memory-limit"))
    pod = parse_bytes(container["resources"]["limits"]["memory"] + "B")
    assert 0.8 * pod < limit < 0.94 * pod


@pytest.mark.parametrize("name", WORKERS)
def test_worker__has_one_thread_and_the_ports_it_declares(name: str) -> None:
    (container,) = PODS[name]["containers"]
    assert option(container, "--nthreads") == "1"
    listened = {int(option(container, each).lstrip(":")) for each in _PORTS}
    assert listened == {port["containerPort"] for port in container["ports"]}


_PORTS = ("--worker-port", "--nanny-port", "--dashboard-address")


def test_gpu__asked_for_and_offered__by_the_gpu_group_only() -> None:
    offered = {name for name in WORKERS if "--resources" in PODS[name]["containers"][0]["args"]}
    asked = {name for name, pod in PODS.items() if "nvidia.com/gpu" in str(pod["containers"][0]["resources"])}
    assert offered == asked == {"DaskWorkerGroup-worker"}
    (container,) = PODS["DaskWorkerGroup-worker"]["containers"]
    assert option(container, "--resources") == "GPU=1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def _allowed(policy: Object, direction: str, component: str | None) -> set[int]:
    """Return the TCP ports open between pods of the cluster."""
    peers = {"ingress": "from", "egress": "to"}[direction]
    rules = [rule for rule in policy["spec"].get(direction, []) if "podSelector" in str(rule.get(peers))]
    assert policy["spec"]["podSelector"]["matchLabels"].get("dask.org/component") == component
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_network_policies__cover_the_ports_of_dask__and_no_dashboard() -> None:
    policies = written()
    scheduler = _allowed(one("NetworkPolicy", "spatialscope-scheduler", policies), "ingress", "scheduler")
    workers = _allowed(one("NetworkPolicy", "spatialscope-workers", policies), "ingress", "worker")
    everyone = one("NetworkPolicy", "spatialscope", policies)
    (container,) = PODS["DaskCluster-worker"]["containers"]
    talk = {int(option(container, name)) for name in ("--worker-port", "--nanny-port")}
    assert scheduler == {int(option(PODS["DaskCluster-scheduler"]["containers"][0], "--port"))}
    assert workers == talk
    assert _allowed(everyone, "egress", None) == scheduler | workers
    assert _allowed(everyone, "ingress", None) == set()


def test_dashboard__is_reached_inside_the_cluster_only() -> None:
    assert one("DaskCluster", "spatialscope", written())["spec"]["scheduler"]["service"]["type"] == "ClusterIP"
    assert not [each for each in written() if each["kind"] in {"Ingress", "Service"}]


@pytest.mark.parametrize("name", PODS)
def test_pod__has_no_rights_and_writes_to_its_scratch_only(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        secured = container["securityContext"]
        assert (secured["readOnlyRootFilesystem"], secured["allowPrivilegeEscalation"]) == (True, False)
        assert secured["capabilities"] == {"drop": ["ALL"]}
        assert container["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]
    assert "emptyDir" in pod["volumes"][0]


def test_environment__is_that_of_workers_of_our_own__and_known_to_dask() -> None:
    import dask

    given = one("ConfigMap", "spatialscope-environment", written())["data"]
    own = {**environment.of_standing_cluster(), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10"}
    assert {name: given.get(name) for name in own} == own
    assert given["SPATIALSCOPE_CACHE"].startswith("/tmp/")
    limits = {PODS[name]["volumes"][0]["emptyDir"]["sizeLimit"] for name in ("DaskJob-driver", *WORKERS)}
    assert limits == {f"{2 * int(given['SPATIALSCOPE_CACHE_GIB'])}Gi"}
    for name in (name for name in given if name.startswith("DASK_")):
        section = collect_env({name: given[name]})
        assert _keys(section) <= _keys(dask.config.config), name


def _keys(section: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in section.items():
        path = f"{prefix}.{name.replace('_', '-')}"
        keys |= {path} | (_keys(value, path) if isinstance(value, dict) else set())
    return keys


def test_driver__is_given_options_that_exist() -> None:
    from typer.main import get_command

    from spatialscope_dist.cli import app

    (container,) = PODS["DaskJob-driver"]["containers"]
    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    program, subcommand, *arguments = container["args"]
    assert (program, subcommand) == ("spatialscope", "run")
    parsed = command.make_context("run", list(arguments)).params
    assert parsed["scheduler"] == "tcp://spatialscope-scheduler:8786"


def test_image__runs_as_the_user_of_the_pods__with_pinned_packages() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)", text, flags=re.M) == ["10001"]
    installs = re.findall(r"^RUN .*pip install.*$", text, flags=re.M)
    assert installs
    assert all("-c constraints/ci-py311.txt" in line for line in installs)
    assert {re.sub(r":.*", "", source) for source in re.findall(r"^FROM (\S+)", text, flags=re.M)} == {
        "${PYTHON_IMAGE}"
    }


def test_image__copies_what_exists_and_reaches_the_builder() -> None:
    deploy = ROOT / "deploy"
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", (deploy / "Dockerfile").read_text(), flags=re.M)
    passed = {
        line[1:] for line in (deploy / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {name for line in sources for name in line.split()}
    assert copied == passed
    assert all((ROOT / name).exists() for name in copied)
