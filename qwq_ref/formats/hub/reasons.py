"""One line for each way in which the hub can fail, with what to do about it."""

from __future__ import annotations

import errno
import re
import urllib.request
from collections.abc import Iterator

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_PROXY = "the address of the proxy cannot be used: check HTTPS_PROXY and HTTP_PROXY"
_WAYS = {  # names of exception classes of httpx, requests and the hub's library -> what failed; {} is the address
    "TooManyRedirects": "the redirects of {} never end: check HF_ENDPOINT and the network",
    "ProxyError": "the proxy refuses: check HTTPS_PROXY and HTTP_PROXY",
    "SSLError": "the certificate of {} is not accepted: check the clock, the proxy and SSL_CERT_FILE",
    "TimeoutException": "{} does not answer in time: check the network, or try again",
    "Timeout": "{} does not answer in time: check the network, or try again",
    "RemoteProtocolError": "the connection to {} broke: try again",
    "ReadError": "the connection to {} broke: try again",
    "ChunkedEncodingError": "the connection to {} broke: try again",
    "JSONDecodeError": "{} does not answer as a hub does: check HF_ENDPOINT, and whether the network asks for a log-in",
    "UnsupportedProtocol": "{} is no address of a hub: check HF_ENDPOINT",
    "MissingSchema": "{} is no address of a hub: check HF_ENDPOINT",
    "InvalidSchema": "{} is no address of a hub: check HF_ENDPOINT",
    "InvalidURL": "{} is no address of a hub: check HF_ENDPOINT",
    "InvalidProxyURL": _PROXY,
    "UnicodeEncodeError": "the token holds a character that is not ASCII: check HF_TOKEN, or `hf auth login`",
    "FileMetadataError": "{} does not answer as a hub does: check HF_ENDPOINT and the proxy",
}
_PLACE = "HF_HOME names another folder"
_SYSTEM = {errno.ENOSPC: "the disk of the cache is full", errno.EDQUOT: "the quota of the disk is used up"}
UNKNOWN = "the hub has no such model, or it is private"


def reason(failure: BaseException, repo: str, revision: str | None, endpoint: str) -> str:
    """Return why a request or a download failed.

    failure   raised by the hub's library. Its classes differ between versions, so that names are compared
    endpoint  the address of the hub
    """
    chain = list(_chain(failure))
    for error in chain:
        if (answer := _answer(error, repo, revision, endpoint)) is not None:
            return answer
    for error in chain:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return _WAYS["SSLError"].format(endpoint)
        for kind in type(error).__mro__:
            if kind.__name__ in _WAYS:
                return _WAYS[kind.__name__].format(endpoint)
            if kind.__name__ in ("ConnectError", "ConnectionError"):
                return _unreachable(error, endpoint)
        if isinstance(error, OSError) and error.errno is not None:
            return _SYSTEM.get(error.errno, f"the cache cannot be written ({error.strerror}); {_PLACE}")
        if isinstance(error, ValueError) and "proxy" in str(error).lower():
            return _PROXY
        if "Consistency check failed" in str(error):
            return "a file has another size than the hub says: try again"
    return f"{type(failure).__name__}: {_first_line(failure)}"


def _answer(error: BaseException, repo: str, revision: str | None, endpoint: str) -> str | None:
    """Return what an answer with an error status means; None for an error without an answer."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if response is None or not isinstance(status, int) or status < 400:  # redirects without end have a response, too
        return None
    code, message = response.headers.get("X-Error-Code", ""), response.headers.get("X-Error-Message", "")
    if code == "RevisionNotFound":
        return f"the hub has {repo}, but not its revision {revision}: check the name behind the @"
    if code == "GatedRepo":
        return f"access is restricted: accept the conditions on {endpoint}/{repo}, and {_LOG_IN}"
    if code == "EntryNotFound":
        return "the hub lists a file that it does not have: try again"
    if status == 401 and "credentials" in message:
        return "the hub does not accept the token: check HF_TOKEN, or log in with `hf auth login`"
    if status in (401, 404):
        return f"{UNKNOWN}: check the name. For a private model, {_LOG_IN}"
    if status == 403:
        return f"the hub refuses access ({message or 'no reason given'}): {_LOG_IN}"
    if status == 407:
        return _WAYS["ProxyError"]
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        when = f"in {wait} seconds" if wait.isdecimal() else "later"
        return f"too many requests: try again {when}, or {_LOG_IN}"
    if status >= 500:
        return f"{endpoint} answers with status {status}: try again later"
    return f"{endpoint} answers with status {status}" + (f" ({message})" if message else "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _unreachable(error: BaseException, endpoint: str) -> str:
    """Return what to check for a connection that failed, with the system's words for it."""
    match = re.search(r"\[Errno -?\d+\] ([\w ,.'-]+)", str(error))
    words = f" ({match[1].strip()})" if match else ""
    check = "the network and the proxy" if urllib.request.getproxies() else "the network"
    return f"{endpoint} cannot be reached{words}: check {check}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
