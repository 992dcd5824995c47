"""Which cluster is meant, and whether it may be talked to. Needs no Ray: its settings must stand before it is imported."""

import ipaddress
import os
from collections.abc import MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from trainers.errors import ClusterError

LOCAL_CLUSTER = "auto"  # Ray's word for the cluster that runs on this machine
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_HOW_TO_AUTHENTICATE = (
    "start the cluster with RAY_AUTH_MODE=token, and set here RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (a file with the "
    "cluster's token) or RAY_AUTH_TOKEN; or reach it through a tunnel, e.g. ssh -L 8265:127.0.0.1:8265 HOST"
)


def find_address(option: str | None) -> str:
    """Return the cluster's address: `option`, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else the one on this machine.

    Ray itself would let its environment variables win over an option. Raises ClusterError for an address of another form
    than http(s)://HOST:PORT, HOST:PORT (of Ray's own port) or auto.
    """
    address = option or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or LOCAL_CLUSTER
    address = address.strip().rstrip("/")
    if address == LOCAL_CLUSTER:
        return address
    scheme, separator, rest = address.rpartition("://")
    form = "must be http://HOST:PORT of Ray's dashboard (port 8265), HOST:PORT of Ray itself (port 6379), or auto"
    if separator and scheme not in ("http", "https"):
        raise ClusterError(f"the cluster's address {form}, but is of the kind {scheme}://")
    if "@" in rest:
        raise ClusterError(f"the cluster's address {form}, without user and password; {_HOW_TO_AUTHENTICATE}")
    try:
        parts = urlsplit(f"//{rest}")
        complete = parts.hostname and (parts.port or separator) and not (parts.path or parts.query or parts.fragment)
    except ValueError:
        complete = None
    if not complete:
        raise ClusterError(f"the cluster's address {form}, but is {address!r}")
    return address


def host_and_port(address: str) -> tuple[str, int]:
    """Return where an address of `find_address` other than auto points to."""
    scheme, _, rest = address.rpartition("://")
    parts = urlsplit(f"//{rest}")
    assert parts.hostname is not None
    return parts.hostname, parts.port or (443 if scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by its loopback interface, which no other machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_token(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Turn Ray's token authentication on where a token is there, and see that no other machine is talked to without.

    A process that connects has it off by default, even to a local cluster that Ray starts with it on. The token that Ray
    keeps in ~/.ray is sent to another machine only where RAY_AUTH_MODE=token says so.

    Raises ClusterError where the address is of another machine and there is no token, or the token cannot be read.
    """
    loopback = address == LOCAL_CLUSTER or is_loopback(host_and_port(address)[0])
    own = environment.get(_TOKEN) or environment.get(_TOKEN_PATH)
    if not environment.get(_MODE) and (own or (loopback and _default_token().exists())):
        environment[_MODE] = "token"
    if environment.get(_MODE, "").lower() == "token":
        _require_readable_token(environment)
    elif not loopback:
        raise ClusterError(
            f"a cluster on another machine must be used with token authentication, for whoever reaches it can run code, but "
            f"{_MODE} is {environment.get(_MODE, 'not set')!r} for {address}; {_HOW_TO_AUTHENTICATE}"
        )


def sent_in_clear(address: str) -> bool:
    """Whether the token would travel unencrypted through a network."""
    return address.startswith("http://") and not is_loopback(host_and_port(address)[0])


def _default_token() -> Path:
    return Path.home() / ".ray" / "auth_token"  # where Ray keeps it


def _require_readable_token(environment: MutableMapping[str, str]) -> None:
    if environment.get(_TOKEN):
        return
    path = Path(environment.get(_TOKEN_PATH) or _default_token()).expanduser()
    try:
        there = bool(path.read_text().strip())
    except (OSError, UnicodeDecodeError):
        there = False
    if not there:
        raise ClusterError(
            f"with RAY_AUTH_MODE=token there must be a token, but {_TOKEN} is not set and {path} holds none; put the "
            f"cluster's token there (`ray get-auth-token` on its head node prints it) or name its file in {_TOKEN_PATH}"
        )
