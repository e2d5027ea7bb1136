"""A model hub on this machine: the part of its HTTP interface that huggingface_hub uses for our calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

Files = dict[str, bytes]


class FakeHub:
    """Repositories in memory, each a list of commits; the last is `main`.

    Args:
        token: who shows it may write, and read private repositories.
    """

    def __init__(self, token: str = "hf_secretsecret") -> None:
        self.token = token
        self.repositories: dict[str, list[tuple[str, Files]]] = {}
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.echo = ""  # what refusals quote
        self.url = ""

    def add(self, name: str, files: Files) -> str:
        """Add a commit, and return its hash."""
        commits = self.repositories.setdefault(name, [])
        commit = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits.append((commit, files))
        return commit

    def commit(self, name: str, revision: str) -> tuple[str, Files] | None:
        commits = self.repositories.get(name, [])
        if revision in ("main", "HEAD"):
            return commits[-1] if commits else None
        return next((one for one in commits if one[0] == revision), None)

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        message = f"{code} {self.hub.echo}".strip()
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.tell(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?.*", path):
            self.tell(found[1], found[2], tree=True)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.hand_out(found[1], found[2], found[3])
        else:
            self.refuse(404, "EntryNotFound")

    def readable(self, name: str) -> bool:
        """Refuse unknown and private repositories, which look the same to strangers."""
        if name in self.hub.repositories and (name not in self.hub.private or self.knows_token()):
            return True
        self.refuse(401, "RepoNotFound")
        return False

    def tell(self, name: str, revision: str, tree: bool = False) -> None:
        if not self.readable(name):
            return
        found = self.hub.commit(name, revision)
        if found is None:
            self.refuse(404, "RevisionNotFound")
        elif tree:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in found[1].items()
            ]
            self.answer(200, entries, Content_Type="application/json")
        else:
            body = {"id": name, "sha": found[0], "siblings": [{"rfilename": path} for path in found[1]]}
            self.answer(200, body, Content_Type="application/json")

    def hand_out(self, name: str, revision: str, path: str) -> None:
        if not self.readable(name):
            return
        found = self.hub.commit(name, revision)
        if found is None or path not in found[1]:
            self.refuse(404, "RevisionNotFound" if found is None else "EntryNotFound")
            return
        data = found[1][path]
        self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=found[0])

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif not self.knows_token():
            self.refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self.receive(found[1], found[2], body)
        else:
            self.refuse(404, "EntryNotFound")

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            self.answer(409, {"error": "it exists", "url": f"{self.hub.url}/{name}"})
            return
        self.hub.add(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def receive(self, name: str, revision: str, body: bytes) -> None:
        if revision != "main":
            self.refuse(404, "RevisionNotFound")
            return
        files = dict(self.hub.repositories[name][-1][1])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = self.hub.add(name, files)
        self.answer(200, {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})
