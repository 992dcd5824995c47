"""What is sent to a cluster, and what stays here. No Ray."""

import os
import subprocess
import sys
import zipfile

import pytest

from orchestrator.remote import package as package_module
from orchestrator.remote.own_code import add_own_code
from orchestrator.remote.package import LIMIT_BYTES, collect, shown_size, write_archive
from trainers.errors import ClusterError


def write(folder, *names, size=10):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def test_code_and_settings_are_sent_and_nothing_else(tmp_path):
    sent = ["sweep.yaml", "mine.py", "spaces/__init__.py", "spaces/deep/own.py", "data/loader.py", "table.csv"]
    stays = {
        ".env": "hidden", ".git/config": "hidden", ".venv/bin/python": "hidden", "a/.cache/x.py": "hidden",
        "runs/first/config.yaml": "results", "mlruns/0/meta.yaml": "results", "a/__pycache__/m.py": "cache",
        "rankfront.egg-info/PKG-INFO": "cache", "data/train.parquet": "data", "model.pt": "data", "cat.jpg": "data",
        "ca.pem": "may be a secret", "id_rsa": "may be a secret", "images/mnist/raw": "data", "old/note.txt": "--exclude",
        "spaces/big.txt": "--exclude",
    }  # fmt: skip
    write(tmp_path, *sent, *stays)
    write(tmp_path, "environment/pyvenv.cfg", "environment/lib/a.py", "conda/conda-meta/history", "conda/lib/a.py")
    write(tmp_path, "first/sweep.json", "first/config.yaml", "first/results.parquet")
    found = collect(tmp_path, ["old", "spaces/big*"], tmp_path / "images")
    assert sorted(found.files) == sorted(sent)
    assert found.num_bytes == 10 * len(sent)
    reasons = dict(found.left_out)
    for name, reason in stays.items():
        tops = [name[: len(name) - len(rest)].rstrip("/") for rest in [name.split("/", n)[-1] for n in (1, 2)]]
        assert reason in [reasons.get(top) for top in (name, *tops)], name
    assert (reasons["environment"], reasons["conda"]) == ("virtual environment", "virtual environment")
    assert reasons["first"] == "a sweep's output"
    assert "virtual environment: conda, environment" in found.reasons()


def test_what_git_ignores_stays(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    write(tmp_path, "part/mine.py", "part/checkpoints/a.py", "part/made.py", "other.py")
    (tmp_path / ".gitignore").write_text("checkpoints/\nmade.py\n")
    found = collect(tmp_path / "part")
    assert list(found.files) == ["mine.py"]
    assert found.left_out == [("checkpoints", "ignored by git"), ("made.py", "ignored by git")]


def test_what_is_left_out_is_shown_in_a_few_lines(tmp_path):
    write(tmp_path, *(f"{number}.jpg" for number in range(7)), "runs/a")
    found = collect(tmp_path)
    assert found.reasons() == ["results: runs", "data: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more"]


def test_links_and_what_is_no_file_lead_nowhere(tmp_path):
    root = tmp_path / "root"
    write(root, "code/mine.py")
    write(tmp_path, "secret.txt", "outside/a.py")
    (root / "inner.py").symlink_to(root / "code" / "mine.py")
    (root / "secret.txt").symlink_to("../secret.txt")
    (root / "outside").symlink_to(tmp_path / "outside")
    (root / "again").symlink_to(root)
    (root / "gone").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe")
    found = collect(root)
    assert sorted(found.files) == ["code/mine.py", "inner.py"]
    assert dict(found.left_out) == {
        "again": "a link to a folder",
        "outside": "a link to a folder",
        "secret.txt": "a link out of the folder",
        "gone": "not a file",
        "pipe": "not a file",
    }


def test_names_that_no_archive_can_hold_stay(tmp_path):
    write(tmp_path, "mine.py")
    (tmp_path / os.fsdecode(b"b\xff.py")).write_bytes(b"")
    found = collect(tmp_path)
    assert list(found.files) == ["mine.py"]
    assert [reason for _, reason in found.left_out] == ["its name is not UTF-8"]


def test_too_much_is_refused_with_the_largest_and_the_remedy(tmp_path, monkeypatch):
    write(tmp_path, "assets/weights.bin", size=LIMIT_BYTES)
    write(tmp_path, "assets/more.bin", "mine.py", size=2048)
    message = (
        r"at most 10000 files and 50\.0 MiB are sent, but .* has 3 files, 50\.0 MiB; the largest: assets/ \(50\.0 MiB\), "
        r"assets/weights\.bin \(50\.0 MiB\), mine\.py \(2\.0 KiB\), assets/more\.bin \(2\.0 KiB\)\. "
        r"Leave them out by --exclude PATTERN"
    )
    with pytest.raises(ClusterError, match=message):
        collect(tmp_path)
    assert sorted(collect(tmp_path, ["*.bin"]).files) == ["mine.py"]
    monkeypatch.setattr(package_module, "LIMIT_FILES", 1)
    with pytest.raises(ClusterError, match="has more than 1 files"):
        collect(tmp_path, ["weights.bin"])
    with pytest.raises(ClusterError, match="must be a folder"):
        collect(tmp_path / "mine.py")


def test_equal_contents_give_equal_archives(tmp_path):
    archives = []
    for place in ("one", "two"):
        write(tmp_path / place, "b.py", "a/c.yaml")
        os.utime(tmp_path / place / "b.py", (1, len(archives)))
        archives.append(tmp_path / f"{place}.zip")
        write_archive(collect(tmp_path / place).files, archives[-1])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert archive.namelist() == ["a/c.yaml", "b.py"]
        assert archive.read("b.py") == b"x" * 10


def test_a_file_that_goes_before_it_is_sent_is_named(tmp_path):
    write(tmp_path, "mine.py")
    found = collect(tmp_path)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ClusterError, match=r"must be readable.*mine\.py"):
        write_archive(found.files, tmp_path / "out.zip")


def test_rankfront_goes_with_it_and_runs_from_the_archive_alone(tmp_path):
    write(tmp_path / "root", "note.txt")
    found = collect(tmp_path / "root")
    assert add_own_code(found) == len(found.files) - 1
    write_archive(found.files, tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        archive.extractall(tmp_path / "job")
    code = "import orchestrator.cli, trainers, search_spaces, importlib.metadata as m\n"
    code += "print(orchestrator.cli.__file__, trainers.__file__, search_spaces.__file__)\n"
    code += "print(next(iter(m.distributions(name='rankfront'))).locate_file('').absolute())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "job", env={**os.environ, "PYTHONPATH": ""}, capture_output=True,
        text=True, check=True, timeout=300,
    )  # fmt: skip
    assert all(path.startswith(str(tmp_path / "job")) for path in done.stdout.split()), done.stdout
    assert {"orchestrator/report/templates/page.css", "trainers/py.typed"} <= found.files.keys()


def test_another_package_of_rankfronts_names_is_refused(tmp_path):
    write(tmp_path, "trainers/__init__.py")
    with pytest.raises(ClusterError, match="has the name of a package of rankfront"):
        add_own_code(collect(tmp_path))


def test_a_checkout_of_rankfront_is_sent_once(pytestconfig):
    found = collect(pytestconfig.rootpath)
    before = len(found.files)
    assert add_own_code(found) <= 1  # its version; the code is there
    assert {"orchestrator/cli.py", "examples/digits.yaml"} <= found.files.keys()
    assert before <= len(found.files)


@pytest.mark.parametrize(("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB")])
def test_sizes(size, shown):
    assert shown_size(size) == shown
