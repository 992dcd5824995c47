"""Who may import whom: trainers know nothing of Ray, Optuna and MLflow, and one package imports MLflow."""

import ast
import subprocess
import sys

import pytest
from trial_records import record

from orchestrator.paths import SweepPaths
from orchestrator.records import write_records

FOREIGN = {"ray", "optuna", "mlflow"}


def imports(path):
    """All modules a file imports, with whether it does so for type checking only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in typing_only


def found(pytestconfig, package):
    folder = pytestconfig.rootpath / package
    for path in sorted(folder.rglob("*.py")):
        for module, typing_only in imports(path):
            yield str(path.relative_to(folder)), module.partition(".")[0], typing_only


def test_trainers_import_nothing_of_the_other_packages(pytestconfig):
    modules = {module for _, module, _ in found(pytestconfig, "trainers")}
    assert not modules & (FOREIGN | {"orchestrator", "search_spaces"})
    assert "torch" in modules  # the walk finds imports at all


def test_search_spaces_import_optuna_for_type_checking_only(pytestconfig):
    modules = {module for _, module, typing_only in found(pytestconfig, "search_spaces") if not typing_only}
    assert not modules & (FOREIGN | {"orchestrator"})


def test_one_package_imports_mlflow(pytestconfig):
    files = {name for name, module, _ in found(pytestconfig, "orchestrator") if module == "mlflow"}
    assert "tracking/store.py" in files
    assert all(name.startswith("tracking/") for name in files)


@pytest.mark.parametrize("package", ["trainers", "search_spaces"])
def test_the_package_loads_without_the_others_installed(package):
    code = f"""
import sys
for name in {sorted(FOREIGN)}:
    sys.modules[name] = None  # an import of it raises
import importlib, pkgutil, {package}
for module in pkgutil.iter_modules({package}.__path__, "{package}."):
    importlib.import_module(module.name)
loaded = {{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}}
assert not loaded & {FOREIGN | {"orchestrator", "pydantic"}!r}, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("arguments", [("--help",), ("front", "sweep"), ("validate", "wrong.yaml")])
def test_what_only_reads_files_answers_without_torch_ray_and_the_like(tmp_path, arguments):
    """Their imports would take seconds; a valid configuration's network is built, and takes them."""
    paths = SweepPaths(tmp_path / "sweep")
    paths.root.mkdir()
    write_records([record("trial-0000", macs_ratio=0.5, params=10, params_ratio=0.5)], paths.results)
    (tmp_path / "wrong.yaml").write_text(
        "name: x\nmodel: {name: resnet20}\ndata: {name: cifar10}\nsearch: {sampler: tpe}\nlatency: {batch: 0}\n"
    )
    code = f"""
import sys
from orchestrator.cli import main
sys.argv[1:] = {list(arguments)!r}
try:
    main()
except SystemExit as ended:
    assert (ended.code or 0) == {2 * (arguments[0] == "validate")}
slow = {{"torch", "torchvision", "ray", "optuna", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "plotly", "PIL"}}
if sys.argv[1] == "front":
    slow |= {{"orchestrator.config", "trainers.config", "yaml", "statistics"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"--help": "Usage", "front": "trial-0000", "validate": "latency.batch"}[
        arguments[0]
    ] in done.stdout + done.stderr


def test_the_public_names_of_trainers_are_loaded_when_they_are_asked_for():
    code = """
import sys
import trainers.config, trainers.errors
assert "torch" not in sys.modules
from trainers import *
import trainers, trainers.public
assert all(globals()[name] is getattr(trainers.public, name) for name in trainers.public.__all__)
assert not hasattr(trainers, "nonsense") and not hasattr(trainers, "__wrapped__")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_files_stay_small(pytestconfig):
    for package in ("trainers", "search_spaces", "orchestrator"):
        for path in (pytestconfig.rootpath / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
