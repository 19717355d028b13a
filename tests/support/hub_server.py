"""A server on this machine that speaks the part of the Hugging Face hub's API that downloads use, with planted faults.

Files of at least `LARGE` bytes lie on a second server, as the hub's large files do: the first one redirects there.
Both honour ranges. A fault happens to requests with a certain path, a number of times.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

LARGE = 1000
ALWAYS = 1 << 30


def commit_of(files):
    return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()


@dataclass
class Fault:
    """What happens to some requests.

    kind   "status" (with `value` and `headers`), "cut" (after `value` bytes), "hang" (no answer until the end),
           "stall" (after `value` bytes, until the end), "loop" (a redirect to itself), "page" (a web page with
           status 200), "size" (a `X-Linked-Size` that is `value` too large)
    where  a regular expression for `hub:GET /path` or `store:GET /path`
    times  how often
    """

    where: str
    kind: str
    value: int = 0
    headers: dict = field(default_factory=dict)
    times: int = ALWAYS


class Hub:
    """The state of both servers.

    repos   id -> branch, tag or commit -> name -> bytes
    tokens  the tokens that are accepted; gated and private repositories need one
    log     (method, path, range) of every request
    """

    ranges = True  # whether ranges are honoured
    sizes = True  # whether the list of a repository tells sizes, as the hub's own does

    def __init__(self):
        self.repos, self.gated, self.private, self.tokens = {}, set(), set(), {"hf_right"}
        self.faults, self.log, self.authorizations = [], [], []
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(role)) for role in ("hub", "store")]
        self.address, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.stop.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, repo, files, branch="main"):
        """Publish files as the newest commit of a branch. Return the commit."""
        commit = commit_of(files)
        self.repos.setdefault(repo, {}).update({branch: dict(files), commit: dict(files)})
        return commit

    def fault(self, *args, **kwargs):
        self.faults.append(Fault(*args, **kwargs))

    @staticmethod
    def forget_connections():
        """Make the hub's library read the environment again."""
        from huggingface_hub.utils import _http

        getattr(_http, "close_session", lambda: None)()

    def asked(self, method=None, part=""):
        """Return the paths of the requests so far."""
        with self.lock:
            return [path for m, path, _ in self.log if part in path and method in (None, m)]

    def _handler(self, role):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                hub.answer(self, role)

            def do_HEAD(self):
                hub.answer(self, role)

        return Handler

    def _fault(self, path):
        with self.lock:
            for fault in self.faults:
                if re.search(fault.where, path) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request, role):
        path = urllib.parse.unquote(request.path)
        with self.lock:
            self.log.append((request.command, path, request.headers.get("Range")))
            self.authorizations.append((f"{role}:{path}", request.headers.get("Authorization")))
        request.hub, request.fault = self, self._fault(f"{role}:{request.command} {path}")
        kind = request.fault.kind if request.fault else None
        if kind == "hang":
            self.stop.wait(60)
            request.close_connection = True
        elif kind == "status":
            send(request, request.fault.value, b"", request.fault.headers)
        elif kind == "page":
            send(request, 200, b"<!DOCTYPE html><html>Log in</html>", {"Content-Type": "text/html"})
        elif kind == "loop":
            send(request, 302, b"", {"Location": request.path})
        elif role == "store":
            self.stored(request, path)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?", path):
            self.info(request, match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)/tree/([^?]+?)(?:\?.*)?", path):
            self.tree(request, match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)", path):
            self.resolve(request, match[1], match[2])
        else:
            send(request, 404, b"")

    def files(self, request, repo, revision, of_file=False):
        """Return the files of a revision; None after an answer with an error."""
        authorised = (request.headers.get("Authorization") or "").removeprefix("Bearer ") in self.tokens
        if request.headers.get("Authorization") and not authorised:
            message = "Invalid credentials in Authorization header"
            send(request, 401, b"", {"X-Error-Message": message})
        elif repo not in self.repos or (repo in self.private and not authorised):
            send(request, 401, b"", {"X-Error-Message": "Invalid username or password."})
        elif of_file and repo in self.gated and not authorised:
            message = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
            send(request, 401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif revision not in self.repos[repo]:
            send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return self.repos[repo][revision]
        return None

    def info(self, request, repo, revision):
        files = self.files(request, repo, revision)
        if files is None:
            return
        siblings = [{"rfilename": name, "size": len(data), "blobId": git_id(data)} for name, data in files.items()]
        for each in siblings:
            data = files[each["rfilename"]]
            if len(data) >= LARGE:
                each["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            if not self.sizes:
                each.update({"size": None, "lfs": None})
        send_json(request, {"id": repo, "sha": commit_of(files), "siblings": siblings})

    def tree(self, request, repo, revision):
        files = self.files(request, repo, revision)
        if files is None:
            return
        rows = [{"type": "file", "path": n, "size": len(data), "oid": git_id(data)} for n, data in files.items()]
        send_json(request, rows)

    def resolve(self, request, repo, rest):
        """Answer for a file: revisions and names may hold a slash, so the longest known revision counts."""
        found = [rev for rev in self.repos.get(repo, {}) if rest.startswith(f"{rev}/")]
        revision = max(found, key=len, default=rest.partition("/")[0])
        name = rest.removeprefix(f"{revision}/")
        files = self.files(request, repo, revision, of_file=True)
        if files is None:
            return
        headers = {"X-Repo-Commit": commit_of(files)}
        if name not in files:
            send(request, 404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        data = files[name]
        if len(data) < LARGE:
            self.send_file(request, data, headers | {"ETag": f'"{git_id(data)}"'})
            return
        size = len(data) + (request.fault.value if request.fault and request.fault.kind == "size" else 0)
        headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{sha256(data)}"'}
        location = f"{self.store}/{sha256(data)}/{urllib.parse.quote(name)}"
        send(request, 302, b"", headers | {"Location": location})

    def stored(self, request, path):
        wanted = path.split("/")[1]
        for revisions in self.repos.values():
            for files in revisions.values():
                for data in files.values():
                    if len(data) >= LARGE and sha256(data) == wanted:
                        self.send_file(request, data, {"ETag": f'"{wanted}"'})
                        return
        send(request, 404, b"")

    def send_file(self, request, data, headers):
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if self.ranges and asked and int(asked[1]) < len(data):
            status, first = 206, int(asked[1])
            end = min(len(data), int(asked[2] or len(data)) + 1)
            headers = headers | {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
            data = data[first:end]
        send(request, status, data, headers | {"Accept-Ranges": "bytes"})


def send(request, status, data, headers=None):
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command == "HEAD":
        return
    with contextlib.suppress(OSError):  # the other side may have gone
        if request.fault and request.fault.kind == "cut":
            request.wfile.write(data[: request.fault.value])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
        elif request.fault and request.fault.kind == "stall":
            request.wfile.write(data[: request.fault.value])
            request.wfile.flush()
            request.hub.stop.wait(60)
            request.close_connection = True
        else:
            request.wfile.write(data)


def send_json(request, value):
    send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def local_hub(hub, tmp_path, monkeypatch):
    """The hub, where this process looks for it, with an empty cache -> the hub."""
    from huggingface_hub import constants, file_download

    from qwq_ref.formats.hub import heads

    heads.forget()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # older versions copy the template
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50)  # bytes behind the last whole chunk are fetched again
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its tries
    hub.forget_connections()
    yield hub
    hub.forget_connections()


def environment(hub, home, **more):
    """The environment of a process that uses this hub, with its cache in `home`."""
    drop = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return kept | {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        **more,
    }
