"""A hub on loopback: what ``huggingface_hub`` asks of one, over HTTP, with faults on request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test_token"


@dataclass
class Repository:
    """A repository: the files of every commit, the newest last, and its branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add files on top of a branch; returns the commit."""
        found = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        name = hashlib.sha1(repr((len(self.commits), sorted(found))).encode()).hexdigest()
        self.commits[name] = found
        self.refs[ref] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    """The server's state, which tests change while it runs.

    Attributes:
        url: the value for ``HF_ENDPOINT``.
        repositories: by name.
        requests: the method and path of every request so far.
        ranges: the ``Range`` headers of requests for files.
        failures: statuses to answer the next requests with, whatever they are.
        break_after: break off each of the next downloads after so many bytes, one entry per download.
        pause: seconds between the pieces of a file.
        stored: the files that were uploaded as large files, by their SHA-256.
        changed: notified of every request.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)
    pause: float = 0.0
    stored: dict[str, bytes] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def add(self, name: str, files: Mapping[str, bytes], **settings: Any) -> str:
        """A new repository with one commit on main; returns the commit."""
        made = self.repositories[name] = Repository(**settings)
        return made.commit(files)

    def add_folder(self, name: str, folder: Path, **more: bytes) -> str:
        """A new repository with the files of a folder; returns the commit."""
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return self.add(name, {**files, **more})

    def wait_for(self, text: str) -> None:
        """Return as soon as a request's line contains ``text``."""
        with self.changed:
            assert self.changed.wait_for(lambda: any(text in line for line in self.requests), timeout=60)

    def downloaded(self) -> list[str]:
        """The names of the files that were requested with GET, in the order of the requests."""
        found = (re.search(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", line) for line in self.requests)
        return [unquote(match[1]) for match in found if match]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: tests break connections on purpose."""


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of loopback."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub | None, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that knows only this hub, or one that nobody serves if None."""
    return {
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        **more,
    }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _answer(self) -> None:
            self.path = unquote(urlsplit(self.path).path)
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length) if length else self._chunks()
            with hub.changed:
                hub.requests.append(f"{self.command} {self.path}")
                hub.changed.notify_all()
            if hub.failures:
                self._error(hub.failures.pop(0))
                return
            for method, pattern, action in _ROUTES:
                found = re.fullmatch(pattern, self.path)
                if found and self.command in method.split():
                    getattr(self, action)(*found.groups())
                    return
            self._error(404)

        def _chunks(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return b""
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def _json(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _error(self, status: int, code: str = "", message: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            if message:
                self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _repository(self, name: str) -> Repository | None:
            """The repository, if the caller may see it; answers otherwise."""
            found = hub.repositories.get(name)
            kind, _, token = self.headers.get("Authorization", "").partition(" ")
            if kind == "Basic":  # a user and a password in the address, for a proxy in front of the hub
                token = ""
            if token and token != TOKEN:
                self._error(401, message="Invalid credentials in Authorization header")
                return None
            if found is None or (found.private and not token):
                self._error(401 if not token else 404, "RepoNotFound", "Repository not found")
                return None
            return found

        def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
            found = self._repository(name)
            if found is None:
                return None
            commit = found.resolve(revision)
            if commit is None:
                self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return commit, found.commits[commit]

        def info_of_main(self, name: str) -> None:
            self.info(name, "main")

        def info(self, name: str, revision: str) -> None:
            found = self._commit(name, revision)
            if found:
                private = hub.repositories[name].private
                self._json({"id": name, "sha": found[0], "private": private, "tags": []})

        def tree(self, name: str, revision: str) -> None:
            found = self._commit(name, revision)
            if found:
                self._json([_entry(path, content) for path, content in found[1].items()])

        def resolve(self, name: str, revision: str, path: str) -> None:
            found = self._commit(name, revision)
            if found is None:
                return
            commit, files = found
            if hub.repositories[name].gated:
                token = self.headers.get("Authorization")
                self._error(403 if token else 401, "GatedRepo", "Access to this model is restricted")
            elif path not in files:
                self._error(404, "EntryNotFound", "Entry not found")
            else:
                self._file(commit, files[path])

        def _file(self, commit: str, content: bytes) -> None:
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if asked:
                hub.ranges.append(asked)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            end = len(content)
            if hub.break_after and len(content) > hub.break_after[0]:
                end = start + hub.break_after.pop(0)
            for at in range(start, end, 1 << 16):
                time.sleep(hub.pause)
                self.wfile.write(content[at : min(at + (1 << 16), end)])
            if end < len(content):
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

        def create(self) -> None:
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._error(401, message="Invalid credentials in Authorization header")
            elif name in hub.repositories:
                self._error(409, message="You already created this model repo")
            else:
                hub.add(name, {".gitattributes": b""}, private=asked.get("visibility") == "private")
                self._json({"url": f"{hub.url}/{name}", "id": name})

        def branch(self, name: str, branch: str) -> None:
            repository = self._repository(name)
            if repository is not None:
                repository.refs.setdefault(branch, repository.refs["main"])
                self._json({})

        def validate(self) -> None:
            self._json({"errors": [], "warnings": []})

        def preupload(self, name: str, _revision: str) -> None:
            if self._repository(name) is not None:
                asked = json.loads(self.body)["files"]
                modes = {True: "lfs", False: "regular"}
                files = [
                    {
                        "path": each["path"],
                        "uploadMode": modes[each["path"].endswith(".gguf")],
                        "shouldIgnore": False,
                    }
                    for each in asked
                ]
                self._json({"files": files})

        def batch(self, _name: str) -> None:
            objects = []
            for each in json.loads(self.body)["objects"]:
                upload = {"href": f"{hub.url}/storage/{each['oid']}", "header": {}}
                actions = {} if each["oid"] in hub.stored else {"actions": {"upload": upload}}
                objects.append({"oid": each["oid"], "size": each["size"], **actions})
            self._json({"transfer": "basic", "objects": objects})

        def store(self, oid: str) -> None:
            if hashlib.sha256(self.body).hexdigest() != oid:
                self._error(400)
                return
            hub.stored[oid] = self.body
            self._json({})

        def commit(self, name: str, revision: str) -> None:
            repository = self._repository(name)
            if repository is None:
                return
            files = {}
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
            made = repository.commit(files, revision)
            self._json(
                {"commitUrl": f"{hub.url}/{name}/commit/{made}", "commitOid": made, "pullRequestUrl": None}
            )

    return Handler


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{_NAME}", "info_of_main"),
    ("GET", rf"/api/models/{_NAME}/revision/(.+)", "info"),
    ("GET", rf"/api/models/{_NAME}/tree/(.+)", "tree"),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", "preupload"),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", "commit"),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", "branch"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/storage/([0-9a-f]+)", "store"),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """One row of a listing; a weights file is a large one, with a pointer."""
    row: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if path.endswith((".gguf", ".safetensors", ".bin")):
        digest = hashlib.sha256(content).hexdigest()
        row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return row
