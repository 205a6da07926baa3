"""A small Hugging Face hub over real HTTP: model info, trees, ``resolve`` with its headers and redirects, and
errors with their codes, as far as huggingface_hub asks for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin")  # files of this kind are in another store, behind a redirect


@dataclass
class Repo:
    """``revisions`` are branches and tags with their commits; ``commits`` the files of each."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str]
    readers: tuple[str, ...] | None = None  # tokens that may read; None: everybody
    gated: bool = False

    def find(self, revision: str) -> str | None:
        return self.revisions.get(revision, revision if revision in self.commits else None)


@dataclass
class LocalHub:
    """``requests`` are "METHOD path" in order of arrival. ``answers`` replace those to paths with a text in
    them: a status with headers and body. A GET of ``held`` stops after its first half, until ``release``.
    ``moved`` are names that repositories had before; the first GETs of a file in ``faults`` end with these
    statuses, or half-way where it is 0."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[int]] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)  # that were asked for
    held: str | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    store: str = ""  # the same server by another name, to which tokens must not go
    tokens: list[str] = field(default_factory=list)  # that came to the store

    def add(self, name: str, files: dict[str, bytes], **options: object) -> str:
        """A repository with these files on main; its commit."""
        commit = hashlib.sha1(json.dumps([name, *sorted(files)]).encode()).hexdigest()
        self.repos[name] = Repo({commit: files}, {"main": commit}, **options)  # type: ignore[arg-type]
        return commit

    def push(self, name: str, files: dict[str, bytes]) -> str:
        """Another commit of it, where main now is."""
        repo = self.repos[name]
        commit = hashlib.sha1(repo.revisions["main"].encode()).hexdigest()
        repo.commits[commit] = files
        repo.revisions["main"] = commit
        return commit


@contextlib.contextmanager
def local_hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for part, answer in self.hub.answers.items():
            if part in path:
                return self._answer(*answer)
        for old, new in self.hub.moved.items():
            if f"/{old}/" in f"{path}/":
                return self._answer(307, {"Location": self.path.replace(old, new)}, b"")
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/").split("/"))
        if path.startswith("/store/"):
            if token := self.headers.get("Authorization"):
                self.hub.tokens.append(token)
            _, _, org, model, commit, *rest = path.split("/")
            return self._content(self.hub.repos[f"{org}/{model}"].commits[commit]["/".join(rest)], {})
        if "/resolve/" not in path:
            return self._answer(404, {}, b"")
        org, model, _, revision, *rest = path.strip("/").split("/")
        if repo := self._allowed(f"{org}/{model}", content=True):
            self._resolve(f"{org}/{model}", repo, revision, "/".join(rest))
        return None

    def _api(self, parts: list[str]) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        repo = self._allowed(name, content=bool(rest) and rest[0] == "tree")
        if repo is None:
            return None
        revision = "/".join(rest[1:]) if rest else "main"
        commit = repo.find(revision)
        if commit is None:
            return self._problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[commit]
        if rest and rest[0] == "tree":
            return self._json([_entry(path, content) for path, content in files.items()])
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": name, "sha": commit, "siblings": siblings, "private": False})

    def _allowed(self, name: str, *, content: bool) -> Repo | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repo = self.hub.repos.get(name)
        if token == "hf_expired":
            self._problem(401, None, "Invalid credentials in Authorization header")
        elif repo is not None and repo.gated and content and token not in (repo.readers or ()):
            self._problem(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        elif repo is None or (not repo.gated and repo.readers is not None and token not in repo.readers):
            self._problem(404 if token else 401, "RepoNotFound", "Repository not found")
        else:
            return repo
        return None

    def _resolve(self, name: str, repo: Repo, revision: str, path: str) -> None:
        commit = repo.find(revision)
        if commit is None:
            return self._problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repo.commits[commit].get(path)
        if content is None:
            return self._problem(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if not path.endswith(LARGE):
            return self._content(content, headers)
        headers |= {
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Location": f"{self.hub.store}/store/{name}/{commit}/{path}",
        }
        return self._answer(302, headers, b"")

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        status, wanted = 200, self.headers.get("Range")
        if wanted and self.command == "GET":
            self.hub.ranges.append(wanted)
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers = headers | {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            status, content = 206, content[first:]
        faults = self.hub.faults.get(self.path.rpartition("/")[2]) if self.command == "GET" else None
        fault = faults.pop(0) if faults else None
        if fault:
            self._answer(fault, {"Retry-After": "0"}, b"")
        elif fault == 0:
            self._head(status, headers, len(content))
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif self.command == "GET" and self.hub.held and self.path.endswith(self.hub.held):
            half = len(content) // 2
            self._head(200, headers, len(content))
            self.wfile.write(content[:half])
            self.hub.reached.set()
            self.hub.release.wait()
            with contextlib.suppress(OSError):
                self.wfile.write(content[half:])
        else:
            self._answer(status, headers, content)

    def _problem(
        self, status: int, code: str | None, message: str, more: dict[str, str] | None = None
    ) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (more or {})
        self._answer(status, headers, json.dumps({"error": message}).encode())

    def _json(self, value: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if path.endswith(LARGE):
        entry["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 134,
        }
    return entry
