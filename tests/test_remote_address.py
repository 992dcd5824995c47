"""Which cluster is talked to, and that none on another machine is without a token. No Ray."""

import pytest

from orchestrator.remote.address import find_address, host_and_port, is_loopback, require_token, sent_in_clear
from trainers.errors import ClusterError


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_option_wins_over_the_environment_and_the_dashboard_over_ray(monkeypatch):
    assert find_address(None) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_address(None) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265/")
    assert find_address(None) == "http://10.0.0.1:8265"
    assert find_address("https://ray.example.org") == "https://ray.example.org"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "must be http.* but is of the kind ray://"),
        ("anyscale://x", "of the kind anyscale://"),
        ("http://user:secret@head:8265", "without user and password"),
        ("head", "but is 'head'"),
        ("http://head:8265/path", "but is 'http://head:8265/path'"),
        ("http://head:port", "but is 'http://head:port'"),
        ("http://", "but is 'http:'"),
    ],
)
def test_other_addresses_are_refused(address, message):
    with pytest.raises(ClusterError, match=message) as caught:
        find_address(address)
    assert "secret" not in str(caught.value)


def test_hosts_and_ports():
    assert host_and_port("https://ray.example.org") == ("ray.example.org", 443)
    assert host_and_port("[::1]:6379") == ("::1", 6379)
    assert [is_loopback(host) for host in ("localhost", "127.8.0.1", "::1")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "ray.example.org", "localhost.example.org")] == [
        False
    ] * 4
    assert [sent_in_clear(f"{scheme}://10.0.0.1:1") for scheme in ("http", "https")] == [True, False]
    assert not sent_in_clear("http://127.0.0.1:1")


@pytest.mark.parametrize("mode", [None, "disabled", ""])
def test_another_machine_without_a_token_is_refused_with_the_remedy(mode, tmp_path):
    environment = {} if mode is None else {"RAY_AUTH_MODE": mode}
    keep_token_of_a_local_cluster(tmp_path)
    with pytest.raises(
        ClusterError, match=r"must be used with token authentication.*set here RAY_AUTH_MODE=token.*ssh -L"
    ):
        require_token("http://10.0.0.1:8265", environment)
    assert environment.get("RAY_AUTH_MODE") == mode  # the token of a local cluster goes nowhere else by itself


def keep_token_of_a_local_cluster(home):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("local")


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "10.0.0.1:6379"])
def test_a_token_turns_authentication_on(address, tmp_path):
    environment = {"RAY_AUTH_TOKEN": "t"}
    require_token(address, environment)
    assert environment["RAY_AUTH_MODE"] == "token"
    (tmp_path / "token").write_text("t\n")
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    require_token(address, environment)
    assert environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("address", ["auto", "http://127.0.0.1:8265", "localhost:6379"])
def test_this_machine_needs_no_token_and_uses_the_one_that_ray_keeps(address, tmp_path):
    environment = {}
    require_token(address, environment)
    assert environment == {}
    keep_token_of_a_local_cluster(tmp_path)
    require_token(address, environment)
    assert environment == {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_that_is_asked_for_must_be_there(content, tmp_path):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        ClusterError, match=r"there must be a token, but RAY_AUTH_TOKEN is not set and .*/token holds none"
    ):
        require_token("http://10.0.0.1:8265", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})
    with pytest.raises(ClusterError, match=r"\.ray/auth_token holds none"):
        require_token("auto", {"RAY_AUTH_MODE": "token"})
