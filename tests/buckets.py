"""Outputs kept under URLs, and what is in them."""

import time

from orchestrator.stored.location import Location


def at(scheme, tmp_path, ports):
    if scheme == "file":
        return Location.of(f"file://{tmp_path}/bucket/sweep")
    user = "anonymous@" if scheme == "gs" else ""
    url = f"{scheme}://{user}bucket/{tmp_path.name}/sweep?endpoint_override=127.0.0.1:{ports[scheme]}&scheme=http"
    return Location.of(url)


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def write(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path = path.with_name(path.name.replace("_pt", ".pt").replace("_json", ".json"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def objects(location):
    return {path: location.read(path) for path in location.files()}


def wait_for(holds, limit_s=60):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
