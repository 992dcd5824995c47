"""What SECURITY.md promises: nothing is unpickled, servers listen on loopback, secrets stay where they are."""

import ast
import json
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
from servers import free_port
from sweeps import run

from orchestrator.paths import SweepPaths
from orchestrator.provenance import environment
from orchestrator.report.write import write_report
from orchestrator.sync import sync
from orchestrator.tracking.target import TrackingTarget, concealed, redacted, tracking_target
from orchestrator.tracking.tracker import Tracker
from orchestrator.ui import mlflow_command, optuna_command, ray_dashboard
from trainers.errors import SweepError

PACKAGES = ("orchestrator", "trainers", "search_spaces")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
UNPACKERS = {"extractall", "extract", "unpack_archive"}


def calls(tree):
    """Each call's dotted name, and the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def given(call, name):
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def offences(tree):
    """Whatever could run code that a file or the network holds, or serve other machines."""
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"imports {name}" for name in modules if name.partition(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("0.0.0.0", "::"):
            yield f"names {node.value}"
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if name == "torch.load" and given(call, "weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") or given(call, "allow_pickle") not in (None, "False"):
            yield f"{name} may unpickle"
        if name.startswith("yaml.") and last in ("load", "load_all", "compose") and given(call, "Loader") != "_Loader":
            yield f"{name} without the safe loader"
        if name.startswith("yaml.") and last.startswith(("unsafe", "full")):
            yield name
        if name in RUNNERS or name in ("torch.hub.load", "os.system", "os.popen") or last in UNPACKERS:
            yield name
        if last in ("restore", "load_url", "read_pickle") or given(call, "shell") not in (None, "False"):
            yield f"{name}, which runs what it is given"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_in_the_sources_unpickles_or_runs_what_it_reads(pytestconfig, package):
    found = {
        f"{path.relative_to(pytestconfig.rootpath)}: {text}"
        for path in (pytestconfig.rootpath / package).rglob("*.py")
        for text in offences(ast.parse(path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "torch.load(file)", "torch.load(file, weights_only=False)",
        "np.load(path)",
        "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "eval(text)", "host = '0.0.0.0'",
        "Tuner.restore(path)",
        "subprocess.run(text, shell=True)", "archive.extractall(folder)", "shutil.unpack_archive(a, b)",
        "torch.hub.load(a, b)",
    ],
)  # fmt: skip
def test_the_look_at_the_sources_finds_what_it_looks_for(code):
    assert list(offences(ast.parse(code)))


LISTENERS = """
from orchestrator.ray_session import connect
with connect():
    import psutil, ray
    ray.get(ray.remote(lambda: None).remote())
    mine = psutil.Process()
    for process in (mine, *mine.children(recursive=True)):
        for place in process.net_connections("inet"):
            if place.status == "LISTEN":
                print(process.name(), place.laddr.ip)
"""


@pytest.mark.ray
def test_a_ray_of_the_sweeps_own_listens_on_loopback_alone():
    done = subprocess.run([sys.executable, "-c", LISTENERS], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = [line.rpartition(" ") for line in done.stdout.splitlines()]
    assert any(name.startswith("raylet") for name, _, _ in found)
    assert {address for _, _, address in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_user_interfaces_serve_this_machine_alone(tmp_path):
    paths = SweepPaths(tmp_path)
    for file in (paths.mlflow_db, paths.study):
        file.touch()
    for command, _ in (mlflow_command(paths, 1), optuna_command(paths, 1)):
        assert command[command.index("--host") + 1] == "127.0.0.1"


SECRET = "hunter2-4f0c9b6ed1a75283"  # nothing else has it
PASSWORDS = {  # by the URIs that hold them
    f"postgresql+psycopg://me:{SECRET}@host:5432/db": SECRET,
    f"postgresql://me:a/{SECRET}@host/db": f"a/{SECRET}",
    f"postgresql://me:a?{SECRET}#b@host/db": f"a?{SECRET}#b",
    f"postgresql://me:[{SECRET}@host/db": f"[{SECRET}",
    f"http://me:{SECRET}@[::1/x": SECRET,
    f"https://{SECRET}@host": SECRET,
    f"https://host/x?api_key={SECRET}": SECRET,
    f"https://host/x?sig={SECRET}&a=b": SECRET,
    f"https://host/x#token={SECRET}": SECRET,
    f"postgresql://host/db?user=me&sslpassword={SECRET}": SECRET,
    f"mysql://me:{SECRET}%2F@host": f"{SECRET}/",
}


@pytest.mark.parametrize(("uri", "password"), PASSWORDS.items())
def test_a_uri_is_shown_without_its_secret(uri, password):
    assert SECRET not in redacted(uri)
    assert redacted(uri).startswith(uri.partition("://")[0] + "://")
    assert redacted(redacted(uri)) == redacted(uri)
    for said in (f"cannot reach {uri}/api: refused", f"no user me with {password}", f"{uri!r} {uri}"):
        assert SECRET not in concealed(said, uri)


@pytest.mark.parametrize(
    "uri", ["", "databricks", "sqlite:////a/b@c/mlflow.db", "http://host:5000", "file:///a@b/c", "./mlruns"]
)
def test_a_uri_without_a_secret_is_shown_as_it_is(uri):
    assert redacted(uri) == uri
    assert concealed(f"cannot reach {uri}", uri, {}) == f"cannot reach {uri}"


def test_secrets_of_the_environment_are_in_no_message():
    assert concealed("401: tok-en", environment={"MLFLOW_TRACKING_TOKEN": "tok-en"}) == "401: ***"
    assert concealed("403: k/ey", environment={"AWS_SECRET_ACCESS_KEY": "k/ey"}) == "403: ***"
    assert concealed("401 for a%2Fb", "http://me:a%2Fb@h") == "401 for ***"
    assert concealed("401 for a/b", "http://me:a%2Fb@h") == "401 for ***"


@pytest.mark.parametrize("uri", list(PASSWORDS)[:5])
def test_a_store_that_cannot_be_used_is_named_without_its_secret(tmp_path, monkeypatch, caplog, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("@host", f"@127.0.0.1:{free_port()}"))
    target = tracking_target("x", tmp_path / "mlflow.db", tmp_path / "artifacts")
    with caplog.at_level(logging.DEBUG), pytest.raises(SweepError, match="must be usable") as caught:
        Tracker(target, "sweep", tmp_path, tmp_path / "tracking")
    assert SECRET not in str(caught.value) + caplog.text
    assert not holding(tmp_path, SECRET)


def test_a_command_line_is_recorded_without_its_secret(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rankfront", "sweep", "x.yaml", "--set", f"a=http://me:{SECRET}@host/x"])
    assert environment()["command"] == "rankfront sweep x.yaml --set a=http://host/x"


def test_a_dashboard_is_named_without_its_secret(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://me:{SECRET}@head:8265")
    assert ray_dashboard() == "http://head:8265"


def holding(folder, text):
    """What has the text in its name, and the files in which it stands."""
    found = list(folder.rglob("*"))
    return [path for path in found if text in path.name or (path.is_file() and text.encode() in path.read_bytes())]


@pytest.mark.ray
def test_a_secret_is_in_nothing_that_a_sweep_leaves(tmp_path, monkeypatch, capfd, caplog, ray_cluster, small_sweep):
    """A whole sweep whose store's URI has a token: its directory, the store, its artifacts, the log and the screen."""
    output, store = tmp_path / "sweep", tmp_path / "store.db"
    uri = f"sqlite:///file:{store}?token={SECRET}&uri=true"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of such a store
    small = replace(
        small_sweep,
        training=replace(small_sweep.training, pretrain_epochs=1, epochs=1),
        search=replace(small_sweep.search, num_trials=2),
        finetune=replace(small_sweep.finetune, num_models=1),
        tracking=replace(small_sweep.tracking, log_report=True),
    )
    with caplog.at_level(logging.INFO):
        run(small, output)
        write_report(output, output / "again.html")
        assert sync(SweepPaths(output)).store == f"sqlite:///file:{store}"
        assert json.loads(SweepPaths(output).state.read_text())["store"] == f"sqlite:///file:{store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(SweepError, match="must be the sweep's store") as caught:
        sync(SweepPaths(output))
    assert store.exists()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert holding(tmp_path, "trial-0000")  # the search finds what is there
    assert not holding(tmp_path, SECRET)
    screen = capfd.readouterr()
    assert SECRET not in caplog.text + screen.out + screen.err + str(caught.value)


def test_targets_show_no_secret():
    uri = next(iter(PASSWORDS))
    target = TrackingTarget(uri, "x")
    assert (target.shown, target.key) == ("postgresql+psycopg://host:5432/db",) * 2
    assert target.reason(ValueError(f"bad {uri}\nmore {SECRET}")) == "bad postgresql+psycopg://host:5432/db"
