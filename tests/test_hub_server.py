"""The real `huggingface_hub` against a small server that answers as the hub does: download, cache, offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
FILES = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": save({"a": torch.zeros(2)}),
    "model-00002-of-00002.safetensors": save({"b": torch.ones(2)}),
    "flax_model.msgpack": b"not wanted",
    "onnx/config.json": b"not wanted",
}


class Hub(BaseHTTPRequestHandler):
    """Just enough of the hub's interface for one public model, `owner/name`."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/name/revision/") or path == "/api/models/owner/name":
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/owner/name/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith("/owner/name/resolve/"):
            data = FILES.get(path.split("/", 5)[5])
            if data is None:
                self.answer(404, b"", X_Error_Code="EntryNotFound")
            else:
                self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


CODE = """
import sys
from quintet.errors import HubError
from quintet.hub import resolve_folder
try:
    folder = resolve_folder(sys.argv[1], files=["model.safetensors", "model.safetensors.index.json"])
    print(sorted(path.name for path in folder.iterdir()))
except HubError as error:
    print(error)
"""


def resolve(name: str, home: Path, **environment: str) -> str:
    """Resolve in a process of its own, because huggingface_hub reads its environment when it is imported."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    run = subprocess.run(
        [sys.executable, "-c", CODE, name],
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_download_then_offline(endpoint: str, tmp_path: Path) -> None:
    wanted = str(
        sorted(
            name for name in FILES if name.endswith(("config.json", ".index.json", ".safetensors")) and "/" not in name
        )
    )
    assert resolve("owner/name", tmp_path, HF_ENDPOINT=endpoint) == wanted
    assert resolve("owner/name", tmp_path, HF_HUB_OFFLINE="1") == wanted
    assert resolve("owner/name", tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == wanted  # cached: nobody is asked


def test_no_such_model(endpoint: str, tmp_path: Path) -> None:
    assert "There is no model 'owner/other' that you may read" in resolve("owner/other", tmp_path, HF_ENDPOINT=endpoint)


def test_no_network(tmp_path: Path) -> None:
    words = resolve("owner/name", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "could not be downloaded" in words and "Without a network, give the folder of the model" in words
