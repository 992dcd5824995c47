"""cluster/kuberay/: what Kustomize renders, against Kubernetes' schemas, Ray's own reader, and rules of our own."""

import re
import shutil
import subprocess
import sys
import urllib.error
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from servers import fetch, free_port, postgres, running

KUBERAY = Path(__file__).parent.parent / "cluster" / "kuberay"
OPERATOR = "kuberay-system"


@cache
def rendered(variant):
    """Everything that `kubectl apply -k` would send, by kind and name."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, for its Kustomize")
    command = ["kubectl", "kustomize", KUBERAY / variant]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = [item for item in yaml.safe_load_all(text) if item]
    by_name = {(item["kind"], item["metadata"]["name"]): item for item in found}
    assert len(by_name) == len(found)
    return by_name


@pytest.fixture(params=["cluster", "job"])
def objects(request):
    return rendered(request.param)


def ray_cluster(objects):
    """The cluster's specification: the RayCluster's, or that inside the RayJob."""
    if ("RayCluster", "rankfront") in objects:
        return objects["RayCluster", "rankfront"]["spec"]
    return objects["RayJob", "sweep"]["spec"]["rayClusterSpec"]


def groups(objects):
    spec = ray_cluster(objects)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(objects):
    """All pod templates, those that operators make pods from among them."""
    yield from (item["spec"]["template"] for item in objects.values() if item["kind"] in ("Deployment", "StatefulSet"))
    yield from (group["template"] for group in groups(objects))
    if ("RayJob", "sweep") in objects:
        yield objects["RayJob", "sweep"]["spec"]["submitterPodTemplate"]


def test_each_variant_has_what_it_says(objects):
    kinds = {kind for kind, _ in objects}
    assert len(kinds & {"RayCluster", "RayJob"}) == 1
    assert {name for kind, name in objects if kind == "Service"} == {"mlflow", "postgres"}
    assert {item["metadata"].get("namespace", "rankfront") for item in objects.values()} == {"rankfront"}


def test_a_job_runs_on_the_nodes_and_the_image_of_the_cluster():
    spec = rendered("cluster")["RayCluster", "rankfront"]["spec"]
    job = rendered("job")["RayJob", "sweep"]["spec"]
    assert job["rayClusterSpec"] == spec
    templates = [*pods(rendered("cluster")), job["submitterPodTemplate"]]
    images = {container["image"] for template in templates for container in template["spec"]["containers"]}
    assert {image.partition(":")[0] for image in images} == {"rankfront-cpu", "postgres"}  # Ray's nodes must be equal


class TestSchemas:
    def test_kubernetes_own_objects(self, objects):
        """Strictly, in each of Kubernetes' versions that the package knows; admission and defaults need a cluster."""
        package = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
        own = [item for item in objects.values() if not item["apiVersion"].startswith("ray.io/")]
        assert len(own) >= 12
        for release in package.utils.all_versions():
            if tuple(map(int, release.split(".")[:2])) >= (1, 30):
                for item in own:
                    package.validate(item, release, strict=True)

    def test_pod_templates_of_ray(self, objects):
        """KubeRay's CRD takes whole pod templates; these are Kubernetes' own."""
        package = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
        for template in pods(objects):
            wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            package.validate(wrapped, package.latest_version(), strict=True)

    def test_rays_kinds(self, objects):
        """Against the fields that we use, typed as in KubeRay's API reference: no package index has the CRD itself,
        so that a rule of the operator beyond names and types is not checked here."""
        if ("RayJob", "sweep") in objects:
            jsonschema.validate(objects["RayJob", "sweep"]["spec"], RAY_JOB)
        jsonschema.validate(ray_cluster(objects), RAY_CLUSTER)
        with pytest.raises(jsonschema.ValidationError, match="rayversion"):
            jsonschema.validate({**ray_cluster(objects), "rayversion": "2"}, RAY_CLUSTER)

    def test_ray_reads_the_groups(self, objects):
        """By the autoscaler's reader of RayClusters, which is a part of Ray."""
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        read = _derive_autoscaling_config_from_ray_cr(
            {"metadata": {"name": "rankfront", "namespace": "rankfront"}, "spec": ray_cluster(objects)}
        )
        nodes = {name: kind["resources"] for name, kind in read["available_node_types"].items()}
        assert {name: (found["CPU"], found.get("GPU", 0)) for name, found in nodes.items()} == {
            "headgroup": (0, 0),
            "cpu": (4, 0),
            "gpu": (8, 1),
        }


def strict(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, COUNT, TEMPLATE = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object", "minProperties": 1}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
RAY_CLUSTER = strict(
    ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT,
    authOptions=strict(["mode", "secretName"], mode={"enum": ["token"]}, secretName=TEXT),
    headGroupSpec=strict(["rayStartParams", "template"], rayStartParams=PARAMETERS, template=TEMPLATE),
    workerGroupSpecs={
        "type": "array",
        "items": strict(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
            rayStartParams=PARAMETERS, template=TEMPLATE,
        ),
    },
)  # fmt: skip
RAY_JOB = strict(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT, backoffLimit=COUNT, shutdownAfterJobFinishes={"type": "boolean"}, ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=TEMPLATE, rayClusterSpec={"type": "object"},
)  # fmt: skip


class TestSecurity:
    def test_pods_are_restricted(self, objects):
        """The rules of the Pod Security Standard `restricted`, which the namespace enforces."""
        labels = objects["Namespace", "rankfront"]["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        templates = list(pods(objects))
        assert len(templates) >= 5
        for template in templates:
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False  # no pod asks Kubernetes for anything
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
            assert kinds <= {"persistentVolumeClaim", "configMap", "emptyDir", "secret"}
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert "memory" in container["resources"]["limits"]

    def test_secrets_are_named_and_not_made(self, objects):
        assert "Secret" not in {kind for kind, _ in objects}
        assert ray_cluster(objects)["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        text = yaml.safe_dump_all(objects.values())
        assert set(re.findall(r"secretName: (\S+)", text)) == {"ray-token", "database"}
        values = [
            one["value"]
            for template in pods(objects)
            for container in template["spec"]["containers"]
            for one in container.get("env", [])
            if re.search("PASSWORD|TOKEN|SECRET", one["name"]) and "value" in one
        ]
        assert values == ["/run/secrets/database/password"]  # POSTGRES_PASSWORD_FILE

    def test_nothing_is_published(self, objects):
        services = [item for (kind, _), item in objects.items() if kind == "Service"]
        assert all(service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in services)
        assert "serviceType" not in ray_cluster(objects)["headGroupSpec"]
        assert "Ingress" not in {kind for kind, _ in objects}

    def test_who_reaches_whom(self, objects):
        policies = [item["spec"] for (kind, _), item in objects.items() if kind == "NetworkPolicy"]
        own = {template["metadata"]["labels"]["part"] for template in pods(objects)} | {"submitter"}
        ends = [*own, "another pod", "operator", "other namespace", "internet"]
        ports = (53, 443, 5000, 5432, 6379, 8265, 10001)
        open_ways = {
            (source, target, port)
            for source in ends
            for target in ends
            for port in ports
            if source != target or source == "ray"
            if allowed(policies, source, target, port)
        }
        assert {way for way in open_ways if way[:2] != ("ray", "ray")} - outside(ends) == {
            ("ray", "mlflow", 5000),
            ("mlflow", "postgres", 5432),
            ("submitter", "ray", 8265),
            ("operator", "ray", 8265),
        }
        assert {port for source, target, port in open_ways if source == target == "ray"} == set(ports)


def outside(ends):
    """What other namespaces do among themselves is not ours to forbid."""
    foreign = ("operator", "other namespace", "internet")
    return {(a, b, port) for a in foreign for b in foreign for port in (53, 443, 5000, 5432, 6379, 8265, 10001)}


def allowed(policies, source, target, port):
    """As Kubernetes decides: both ends must allow it; an end that no policy selects allows all."""
    return _side(policies, "egress", source, target, port) and _side(policies, "ingress", target, source, port)


def _side(policies, direction, pod, peer, port):
    if pod in ("operator", "other namespace", "internet"):
        return True
    mine = [
        policy
        for policy in policies
        if direction.capitalize() in policy["policyTypes"] and _selects(policy["podSelector"], pod)
    ]
    assert mine, f"{pod} has no policy for {direction}"
    rules = [rule for policy in mine for rule in policy.get(direction, [])]
    key = "to" if direction == "egress" else "from"
    return any(
        any(_is_peer(one, peer) for one in rule[key])
        and ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
        for rule in rules
    )


def _selects(selector, pod):
    return selector == {} or selector["matchLabels"] == {"part": pod}


def _is_peer(rule, peer):
    if "namespaceSelector" in rule:
        namespaces = {"operator": OPERATOR, "other namespace": "default"}
        return rule["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": namespaces.get(peer)}
    return peer not in ("operator", "other namespace", "internet") and _selects(rule["podSelector"], peer)


def mlflow_command(objects):
    (container,) = objects["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    return container


def test_compose_starts_the_same_server(objects):
    command = yaml.safe_load((KUBERAY.parent / "compose" / "compose.yaml").read_text())["services"]["mlflow"]["command"]
    words = re.sub(r"\\\n", " ", command[-1]).partition("exec ")[2].split()
    pairs = re.sub(r" (?=[^-])", "=", " ".join(words[2:])).split(" ")
    assert [*words[:2], *pairs] == mlflow_command(objects)["command"]


@pytest.mark.server
def test_the_server_runs_with_a_password_from_the_environment_and_answers_to_its_name_alone(tmp_path):
    """The Deployment's command and environment, with only addresses and the folder of artifacts replaced."""
    (deployment,) = (
        item
        for item in yaml.safe_load_all((KUBERAY / "base" / "mlflow.yaml").read_text())
        if item["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    port = free_port()
    with postgres() as database:
        parts = urlsplit(database)
        where = f"{parts.scheme}://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
        replaced = {
            "--host": "127.0.0.1", "--port": port, "--backend-store-uri": where, "--artifacts-destination": tmp_path,
            "--workers": 1,
        }  # fmt: skip
        options = [option.partition("=")[::2] for option in container["command"][2:]]
        assert set(replaced) < {name for name, _ in options}
        command = [sys.executable, "-m", *container["command"][:2]]
        command += [f"{name}={replaced.get(name, value)}" for name, value in options]
        settings = {**environment, "HOME": str(tmp_path), "PGPASSWORD": parts.password}
        address = f"http://127.0.0.1:{port}"
        with running(command, f"{address}/health", tmp_path / "log", settings, cwd=tmp_path):
            experiments = f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0"
            assert '"Default"' in fetch(experiments, headers={"Host": "mlflow:5000"}.items())
            with pytest.raises(urllib.error.HTTPError, match="403"):
                fetch(experiments, headers={"Host": "evil.example"}.items())
