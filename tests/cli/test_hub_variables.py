"""Variables of the hub's library that it cannot read: one line names the variable, also if all is in the cache."""

import subprocess
import sys

import pytest

from tests.support.hub_server import environment

NAME = "owner/name"
WHOLE = "must be a whole number of seconds, got "
LINES = {
    "letters": ({"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}, 2, f"HF_HUB_DOWNLOAD_TIMEOUT: {WHOLE}'abc'"),
    "empty": ({"HF_HUB_DOWNLOAD_TIMEOUT": ""}, 2, f"HF_HUB_DOWNLOAD_TIMEOUT: {WHOLE}''"),
    "a fraction": ({"HF_HUB_ETAG_TIMEOUT": "1.5"}, 2, f"HF_HUB_ETAG_TIMEOUT: {WHOLE}'1.5'"),
    "a line end": ({"HF_HUB_ETAG_TIMEOUT": "x\ny"}, 2, f"HF_HUB_ETAG_TIMEOUT: {WHOLE}'x\\ny'"),
    "brackets": (
        {"HF_ENDPOINT": "http://[::1"},
        2,
        "HF_ENDPOINT: is not an address that the library of the hub can read",
    ),
}
UNREAD = {  # those that are read when the hub is asked
    "a token of letters": ({"HF_TOKEN": "hf_\u00e9"}, "the token holds a character that is not ASCII: check HF_TOKEN"),
    "no scheme": ({"HF_ENDPOINT": "hub.example"}, "hub.example is no address of a hub: check HF_ENDPOINT"),
    "a proxy": ({"HTTP_PROXY": "zz://y"}, "the address of the proxy cannot be used: check HTTPS_PROXY and HTTP_PROXY"),
}


def info(hub, home, variables, *more):
    command = [sys.executable, "-m", "qwq_ref", "info", "-m", NAME, *more]
    variables = environment(hub, home) | variables
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


@pytest.fixture
def home(hub, random_folder, tmp_path):
    hub.add(NAME, {file.name: file.read_bytes() for file in random_folder.iterdir()})
    return tmp_path


@pytest.mark.parametrize("name", LINES)
def test_one_line_names_the_variable(hub, home, name):
    variables, status, line = LINES[name]
    for filled in (False, True):
        if filled:
            assert info(hub, home, {}).returncode == 0
        done = info(hub, home, variables)
        assert (done.returncode, done.stderr) == (status, f"qwq: {line}\n")


@pytest.mark.parametrize("name", UNREAD)
def test_one_line_for_what_is_read_later(hub, home, name):
    variables, line = UNREAD[name]
    done = info(hub, home, variables)
    assert done.returncode == 1
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_that_is_nothing_needs_no_variable(hub, home):
    """The cache is looked at only for names that are near."""
    done = subprocess.run(
        [sys.executable, "-m", "qwq_ref", "info", "-m", "qwq-nan"],
        env=environment(hub, home, HF_HUB_DOWNLOAD_TIMEOUT="abc"),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
