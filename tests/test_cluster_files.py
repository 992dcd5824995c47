"""The files below cluster/: each passes the validator of what reads it, and holds what its README promises."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from orchestrator.config import load_config

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
LAUNCHER = sorted((CLUSTER / "launcher").glob("*.yaml"))
SHELL = [*sorted(CLUSTER.rglob("*.sh")), *sorted(CLUSTER.rglob("*.sbatch"))]
RAY_OPTIONS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"}


def read(path):
    return (CLUSTER / path).read_text()


def load(path):
    return yaml.safe_load(read(path))


def program(name):
    """A program that the dev extra installs beside Python, or one of the machine's."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return found or pytest.skip(f"needs {name}")


def passes(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] not in " #"]
    requirements = map(Requirement, lines)
    return {one.name: str(one.specifier).removeprefix("==") for one in requirements}


def version():
    return re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


class TestOneSetOfVersions:
    def test_ray_is_the_tested_one(self):
        assert load("kuberay/cluster/raycluster.yaml")["spec"]["rayVersion"] == pinned()["ray"]
        assert f"rankfront {version()}, Ray {pinned()['ray']}, Python" in read("README.md")

    def test_everything_is_installed_under_the_constraints(self):
        for name in ("Dockerfile", "launcher/setup.sh"):
            installs = [line for line in read(name).splitlines() if re.search(r"uv pip install", line)]
            assert installs, name
            assert all("-c constraints.txt" in line for line in installs), name

    def test_uv_is_the_same_in_the_image_and_on_launched_nodes(self):
        (image,) = re.findall(r"ARG UV_VERSION=(\S+)", read("Dockerfile"))
        (node,) = re.findall(r"uv==(\S+)", read("launcher/setup.sh"))
        assert image == node

    def test_python_is_the_one_that_the_constraints_are_made_for(self):
        (made_for,) = re.findall(r"--python-version (\S+)", (ROOT / "Makefile").read_text())
        assert set(re.findall(r"^FROM python:(\d+\.\d+)", read("Dockerfile"), re.MULTILINE)) == {made_for}
        assert re.findall(r"--python (3\S+)", read("launcher/setup.sh")) == [made_for]

    def test_our_images_have_our_version(self):
        tags = {}
        for path in CLUSTER.rglob("*"):
            if path.is_file():
                for name, tag in re.findall(r"(rankfront(?:-cpu|-cuda|-\${[^}]+})?):(\d[\d.]+)", path.read_text()):
                    tags.setdefault(tag, set()).add((path.name, name))
        assert set(tags) == {version()}, tags
        assert {name for name, _ in tags[version()]} >= {"Dockerfile", "README.md", "compose.yaml", "raycluster.yaml"}

    def test_one_postgres(self):
        images = {
            read(name).split("image: postgres:")[1].split()[0]
            for name in ("compose/compose.yaml", "kuberay/base/postgres.yaml")
        }
        assert len(images) == 1


class TestSecrets:
    def test_no_file_holds_one(self):
        """What is assigned to a secret's variable is a file's path or another variable; no address has a password."""
        assigned = re.compile(
            r"\b[A-Z_]*(?:PASSWORD|TOKEN|SECRET)[A-Z_]*[\"']?(?:\s*[:=]\s*|, value: )[\"']?([^\s,}]+)"
        )
        found = []
        for path in CLUSTER.rglob("*"):
            if path.is_file():
                text = path.read_text()
                found += assigned.findall(text)
                assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), path
        assert len(found) > 5
        assert not [value for value in found if not value.startswith(("/run/secrets/", "$", "~/"))]

    def test_no_default_for_a_variable_that_is_a_secret(self):
        names = set(re.findall(r"\$\{(\w+):?-", read("compose/compose.yaml")))
        assert not [name for name in names if re.search("PASSWORD|TOKEN|SECRET", name)]
        assert "secrets/" in read("compose/.gitignore").split()

    def test_neither_secrets_nor_results_travel_into_the_image(self):
        first, *rest = [line for line in read("Dockerfile.dockerignore").splitlines() if not line.startswith("#")]
        assert first == "*"
        allowed = {line.removeprefix("!") for line in rest if line.startswith("!")}
        packages = {"orchestrator", "trainers", "search_spaces"}
        assert allowed == packages | {"LICENSE", "README.md", "constraints.txt", "examples", "pyproject.toml"}
        assert all((ROOT / name).exists() for name in allowed)


class TestShell:
    @pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
    def test_parses_and_lints(self, path):
        assert "\nset -euo pipefail\n" in path.read_text()
        passes("bash", "-n", path)
        passes(program("shellcheck"), "--shell=bash", "--severity=warning", path)

    def test_sbatch_directives(self):
        """Read as sbatch reads them: before the first command, long options alone. Slurm itself is not asked."""
        known = {
            "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time", "signal", "requeue", "open-mode",
            "output", "gpus-per-node", "partition", "account", "constraint", "exclusive",
        }  # fmt: skip
        lines = read("slurm/sweep.sbatch").splitlines()
        first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
        directives = [line for line in lines[:first_command] if line.startswith("#SBATCH")]
        assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")]
        matches = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in directives]
        assert all(matches), directives
        found = {match[1]: match[2] for match in matches}
        assert set(found) <= known
        assert found["ntasks-per-node"] == "1"  # one Ray node on each machine
        assert re.fullmatch(r"B:USR1@\d+", found["signal"])  # B: this script's shell has the trap
        assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", found["time"])


class TestLauncher:
    @pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)
    def test_ray_accepts_it(self, path):
        """By Ray's own schema and rules; what a cloud says of instance types, images and quotas is not asked."""
        from ray.autoscaler._private.util import prepare_config, validate_config

        prepared = prepare_config(yaml.safe_load(path.read_text()))
        validate_config(prepared)
        workers = {name: kind for name, kind in prepared["available_node_types"].items() if name != "head"}
        assert sum(kind["min_workers"] for kind in workers.values()) >= 2
        broken = {**prepared, "max_worker": 1}
        with pytest.raises(jsonschema.ValidationError, match="max_worker"):
            validate_config(broken)

    @pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)
    def test_what_it_copies_is_there_and_the_token_with_it(self, path):
        config = yaml.safe_load(path.read_text())
        files = config["file_mounts"]
        assert files.pop("~/.ray/auth_token") == "~/.ray/auth_token"
        assert files.pop("~/rankfront/dist") == "dist"  # the README builds the wheel there
        assert all((ROOT / local).exists() for local in files.values())
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/auth_token" in read("launcher/setup.sh")
        commands = "\n".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
        assert "dashboard-host" not in commands  # Ray's default is 127.0.0.1
        assert all("setup.sh" in command for command in config["setup_commands"])

    def test_files_are_the_same_for_all_providers(self):
        keys = ("file_mounts", "head_start_ray_commands", "worker_start_ray_commands")
        configs = [yaml.safe_load(path.read_text()) for path in LAUNCHER]
        for key in keys:
            values = [dict(config)[key] for config in configs]
            if key == "head_start_ray_commands":
                values = [[line.replace(" --num-cpus=0", "") for line in value] for value in values]
            assert all(value == values[0] for value in values), key


class TestCompose:
    FILES = ("compose.yaml", "gpu.yaml")

    @pytest.mark.parametrize("name", FILES)
    def test_the_specifications_schema_accepts_it(self, name):
        package = pytest.importorskip("check_jsonschema", reason="needs check-jsonschema, for the schema in its wheel")
        schema = resources.files(package) / "builtin_schemas" / "vendor" / "compose-spec.json"
        jsonschema.validate(load(f"compose/{name}"), json.loads(schema.read_text()))

    def test_docker_resolves_it(self, monkeypatch):
        docker = program("docker")
        if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
            pytest.skip("needs docker's plugin compose")
        monkeypatch.setenv("RANKFRONT_USER", "1000:1000")
        files = [argument for name in self.FILES for argument in ("-f", CLUSTER / "compose" / name)]
        passes(docker, "compose", *files, "config", "--quiet")

    def test_nothing_listens_beyond_this_machine(self):
        services = load("compose/compose.yaml")["services"]
        ports = [port for service in services.values() for port in service.get("ports", [])]
        assert len(ports) == 2
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert not [service for service in services.values() if service.get("network_mode")]

    def test_every_node_of_ray_asks_for_the_token(self):
        compose = load("compose/compose.yaml")
        for name in ("ray-head", "ray-worker"):
            node = compose["services"][name]
            assert RAY_OPTIONS.items() <= node["environment"].items()
            assert node["secrets"] == ["ray_token"]
        assert {name: set(secret) for name, secret in compose["secrets"].items()} == {
            "ray_token": {"file"},
            "database_password": {"file"},
        }

    def test_containers_do_not_run_as_root(self):
        services = load("compose/compose.yaml")["services"]
        ours = {name: service for name, service in services.items() if name != "postgres"}  # its entry point drops root
        assert all(service["user"].startswith("${RANKFRONT_USER") for service in ours.values())
        assert all(service["cap_drop"] == ["ALL"] for service in ours.values())
        assert all(service["security_opt"] == ["no-new-privileges:true"] for service in services.values())


class TestDockerfile:
    def test_hadolint_has_nothing_to_say(self):
        passes(program("hadolint"), CLUSTER / "Dockerfile")

    def test_both_targets_end_as_an_ordinary_user_with_the_token_asked_for(self):
        stages = re.split(r"^FROM ", read("Dockerfile"), flags=re.MULTILINE)[1:]
        names = {stage.split()[2]: stage for stage in stages}
        assert {"cpu", "cuda"} <= set(names)
        assert all(names[target].startswith("runtime AS") for target in ("cpu", "cuda"))
        assert "USER" not in names["cpu"] + names["cuda"]
        assert "\nUSER 1000:1000\n" in names["runtime"]
        assert "RAY_AUTH_MODE=token" in names["runtime"]
        assert "TOKEN" not in names["runtime"].replace("RAY_AUTH_MODE=token", "")


def test_the_examples_in_the_files_are_configurations(tmp_path):
    assert load_config(CLUSTER / "kuberay" / "job" / "sweep.yaml").name == "digits"


def test_the_readme_names_every_file():
    hidden = ("README.md", ".gitignore")
    files = {path.name for path in CLUSTER.rglob("*") if path.is_file() and path.name not in hidden}
    assert len(files) > 15
    assert not [name for name in files if name not in read("README.md")]
