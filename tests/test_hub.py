"""Names to folders, the local cache, the network only when it must be, and the reading and writing of files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet import hub
from quintet.errors import CheckpointError, ConfigError, HubError
from quintet.hub import resolve as resolve_module

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face home, and a current folder with nothing in it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "hub"


def put_in_cache(
    cache: Path, name: str, files: dict[str, str], commit: str = COMMIT, revision: str | None = "main"
) -> Path:
    """Lay files out as huggingface_hub does: blobs, and snapshots of relative links to them."""
    repo = cache / ("models--" + name.replace("/", "--"))
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    if revision:
        ref = repo / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    for file, text in files.items():
        blob = repo / "blobs" / f"{abs(hash((file, text))):040x}"
        blob.write_text(text)
        link = snapshot / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


class FakeHub:
    """Stands in for `huggingface_hub.snapshot_download`: a dictionary of files, and a record of what was asked."""

    def __init__(self, cache: Path, files: dict[str, str]) -> None:
        self.cache, self.files = cache, files
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def snapshot_download(self, name: str, **options: Any) -> str:
        from fnmatch import fnmatch

        self.calls.append({"name": name, **options})
        if self.error is not None:
            raise self.error
        wanted = options["allow_patterns"]
        ignored = options["ignore_patterns"] or []
        chosen = {
            file: text
            for file, text in self.files.items()
            if any(fnmatch(file, pattern) for pattern in wanted) and not any(fnmatch(file, p) for p in ignored)
        }
        there = self.cache / ("models--" + name.replace("/", "--")) / "snapshots" / COMMIT
        missing = {file: text for file, text in chosen.items() if not (there / file).exists()}
        return str(put_in_cache(Path(options["cache_dir"]), name, missing, revision=options["revision"]))


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub(cache, {"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "{}", "flax.msgpack": "f"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


# --- folders and names ------------------------------------------------------------------------------------------------


def test_a_folder_wins_over_everything(cache: Path) -> None:
    put_in_cache(cache, "gpt2", {"config.json": "{}"})
    Path("gpt2").mkdir()
    assert hub.resolve_folder("gpt2") == Path("gpt2")
    assert hub.resolve_folder(Path("gpt2").absolute()) == Path("gpt2").absolute()


def test_tilde_is_the_home_folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve_folder("~/model") == tmp_path / "model"


def test_subfolder_of_a_folder(cache: Path) -> None:
    Path("m/part/deep").mkdir(parents=True)
    assert hub.resolve_folder("m", subfolder="part/deep") == Path("m/part/deep")
    with pytest.raises(HubError, match="no subfolder 'other'. Its subfolders: part"):
        hub.resolve_folder("m", subfolder="other")


@pytest.mark.parametrize("subfolder", ["..", "a/../../b", "/etc", "a//b", "a\\b", "C:x", "."])
def test_subfolder_may_not_leave(cache: Path, subfolder: str) -> None:
    Path("m").mkdir()
    with pytest.raises(HubError, match="subfolder .* must be relative"):
        hub.resolve_folder("m", subfolder=subfolder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty. Give a folder"),
        ("   ", "is empty"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("../nothing", "There is no folder '../nothing', and that is not a name"),
        ("a/b/c", "hub name looks like"),
        ("/no/such/folder", "There is no folder '/no/such/folder'"),
        ("./missing", "There is no folder './missing'"),
        ("a\\b", "not a name on the hub"),
        ("a--b/c", "not a name on the hub"),
        ("x..y", "not a name on the hub"),
        ("~nobody-at-all/x", "There is no folder"),
        ("n" * 5000, "not a name on the hub"),
        ("owner/", "not a name on the hub"),
        ("-x", "not a name on the hub"),
    ],
)
def test_bad_names(online: FakeHub, name: str, words: str) -> None:
    with pytest.raises(HubError, match=words):
        hub.resolve_folder(name)
    assert online.calls == []


def test_name_must_be_text(cache: Path) -> None:
    with pytest.raises(TypeError):
        hub.resolve_folder(None)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="must be a string or a path, got bytes"):
        hub.resolve_folder(b"gpt2")  # type: ignore[arg-type]


def test_a_file_is_not_a_model(cache: Path) -> None:
    Path("model.safetensors").write_text("x")
    with pytest.raises(HubError, match="is a file, and a model is a folder. Give the folder that holds it"):
        hub.resolve_folder("model.safetensors")


def test_bundled_model(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resolve_module.BUNDLED, "storyteller", tmp_path / "here")
    assert hub.resolve_folder("storyteller", local_files_only=True) == tmp_path / "here"
    monkeypatch.setitem(resolve_module.BUNDLED, "storyteller", tmp_path / "gone")
    with pytest.raises(HubError, match="missing from this installation .* Reinstall quintet"):
        hub.resolve_folder("storyteller")


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b"}, "/b"),
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
        ({"HF_HOME": "/c"}, "/c/hub"),
        ({"HF_HOME": "$QUINTET_TEST_BASE/c", "QUINTET_TEST_BASE": "/z"}, "/z/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HOME": "/e"}, "/e/.cache/huggingface/hub"),
    ],
)
def test_cache_folder_is_the_one_of_huggingface_hub(variables: dict[str, str], expected: str) -> None:
    """The same environment, asked in a fresh process, because huggingface_hub reads it at import."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "XDG_"))}
    code = "from quintet.hub import cache_folder; print(cache_folder())\n"
    code += "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [expected, expected]


def test_cache_dir_argument_wins(cache: Path, tmp_path: Path) -> None:
    snapshot = put_in_cache(tmp_path / "mine", "a/b", {"config.json": "{}"})
    assert hub.resolve_folder("a/b", cache_dir=tmp_path / "mine", local_files_only=True) == snapshot
    assert hub.cache_folder("~/x") == Path("~/x").expanduser()


def test_cached_by_branch_tag_and_commit(cache: Path) -> None:
    first = put_in_cache(cache, "a/b", {"config.json": "1"})
    second = put_in_cache(cache, "a/b", {"config.json": "2"}, OTHER, "refs/pr/1")
    assert hub.resolve_folder("a/b", local_files_only=True) == first
    assert hub.resolve_folder("a/b", revision="main", local_files_only=True) == first
    assert hub.resolve_folder("a/b", revision="refs/pr/1", local_files_only=True) == second
    assert hub.resolve_folder("a/b", revision=OTHER, local_files_only=True) == second
    with pytest.raises(HubError, match="nothing for revision 'v2'"):
        hub.resolve_folder("a/b", revision="v2", local_files_only=True)


@pytest.mark.parametrize("revision", ["../main", "..", "a/../../b", "/etc/passwd", "", "x\0"])
def test_revision_may_not_leave(cache: Path, revision: str) -> None:
    with pytest.raises(HubError, match="revision"):
        hub.resolve_folder("a/b", revision=revision)


@pytest.mark.parametrize("text", ["../../../etc", "", "a b", "\xff\xfe"])
def test_a_hostile_ref_is_not_followed(cache: Path, text: str) -> None:
    put_in_cache(cache, "a/b", {"config.json": "{}"})
    (cache / "models--a--b" / "refs" / "main").write_text(text, encoding="latin-1")
    with pytest.raises(HubError, match="nothing for revision 'main'"):
        hub.resolve_folder("a/b", local_files_only=True)


def test_cache_must_have_one_of_the_files(online: FakeHub, cache: Path) -> None:
    put_in_cache(cache, "a/b", {"config.json": "{}"})
    assert hub.resolve_folder("a/b", files=["config.json"]).name == COMMIT
    assert online.calls == []
    folder = hub.resolve_folder("a/b", files=["model.safetensors"])
    assert (folder / "model.safetensors").read_text() == "w"
    assert len(online.calls) == 1
    with pytest.raises(HubError, match=r"has none of x.bin"):
        hub.resolve_folder("a/b", files=["x.bin"], local_files_only=True)


def test_an_index_without_its_shards_is_not_enough(online: FakeHub, cache: Path) -> None:
    index = json.dumps({"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}})
    put_in_cache(cache, "a/b", {"model.safetensors.index.json": index, "model-1.safetensors": "1"})
    online.files = {"model.safetensors.index.json": index, "model-1.safetensors": "1", "model-2.safetensors": "2"}
    files = ["model.safetensors", "model.safetensors.index.json"]
    with pytest.raises(HubError, match="not all shards"):
        hub.resolve_folder("a/b", files=files, local_files_only=True)
    folder = hub.resolve_folder("a/b", files=files)
    assert (folder / "model-2.safetensors").read_text() == "2"
    assert online.calls[-1]["allow_patterns"] == ["model-2.safetensors"]
    assert hub.resolve_folder("a/b", files=files, local_files_only=True) == folder


@pytest.mark.parametrize("subfolder", ["", "part"])
def test_chat_templates_in_their_folder_are_downloaded(online: FakeHub, subfolder: str) -> None:
    prefix = f"{subfolder}/" if subfolder else ""
    names = ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
    online.files = {prefix + name: name for name in [*names, "additional_chat_templates/x.bin", "other/y.jinja"]}
    folder = hub.resolve_folder("a/b", files=["tokenizer.json"], subfolder=subfolder)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {*names} <= found and "additional_chat_templates/x.bin" not in found
    assert subfolder or "other/y.jinja" not in found
    assert len(online.calls) == 2


def test_links_without_a_blob_do_not_count(cache: Path) -> None:
    snapshot = put_in_cache(cache, "a/b", {"config.json": "{}"})
    (snapshot / "config.json").resolve().unlink()
    with pytest.raises(HubError, match="not on this machine"):
        hub.resolve_folder("a/b", files=["config.json"], local_files_only=True)


def test_agrees_with_huggingface_hub_about_the_layout(cache: Path) -> None:
    import huggingface_hub

    snapshot = put_in_cache(cache, "owner/name", {"config.json": "{}"})
    found = huggingface_hub.try_to_load_from_cache("owner/name", "config.json", cache_dir=cache)
    assert found == str(snapshot / "config.json")


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_by_environment(
    online: FakeHub, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, cache: Path
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(HubError, match="may not be used") as caught:
        hub.resolve_folder("owner/name")
    assert online.calls == []
    words = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in words
    assert str(cache) in words and str(Path("owner/name").absolute()) in words
    assert "hf download owner/name" in words


def test_offline_by_argument_and_zero_is_online(online: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(HubError, match="local_files_only=True"):
        hub.resolve_folder("owner/name", local_files_only=True)
    assert hub.resolve_folder("owner/name").is_dir()


def test_cached_needs_neither_network_nor_package(online: FakeHub, cache: Path) -> None:
    put_in_cache(cache, "a/b", {"model.safetensors": "w"})
    assert hub.resolve_folder("a/b", files=["model.safetensors"])
    assert online.calls == []


def test_what_a_download_asks_for(online: FakeHub, cache: Path) -> None:
    folder = hub.resolve_folder("o/n", revision="v1", token="secret", files=["model.safetensors"])
    (call,) = online.calls
    assert (call["name"], call["revision"], call["token"]) == ("o/n", "v1", "secret")
    assert call["cache_dir"] == str(cache)
    assert call["force_download"] is False
    # the small files come along, so that the cache is whole when the network is gone; other frameworks' do not
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("token", [None, True, False, "hf_x"])
def test_token_is_passed_as_given(online: FakeHub, token: Any) -> None:
    hub.resolve_folder("o/n", token=token)
    assert online.calls[0]["token"] is token


def test_force_download(online: FakeHub, cache: Path) -> None:
    put_in_cache(cache, "o/n", {"config.json": "{}"})
    hub.resolve_folder("o/n", files=["config.json"], force_download=True)
    assert online.calls[0]["force_download"] is True


def test_download_of_a_subfolder(online: FakeHub) -> None:
    online.files = {"config.json": "{}", "part/config.json": "{}", "part/model.safetensors": "w"}
    folder = hub.resolve_folder("o/n", subfolder="part", files=["model.safetensors"])
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(HubError, match="no subfolder 'other'"):
        hub.resolve_folder("o/n", subfolder="other", files=["model.safetensors"])


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    return getattr(errors, kind)("first line\nsecond line", response=SimpleNamespace(headers={}, request=None))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("RepositoryNotFoundError", "There is no model 'o/n' that you may read"),
        ("GatedRepoError", "is gated: accept its terms"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
    ],
)
def test_refusals_of_the_hub(online: FakeHub, cache: Path, kind: str, words: str) -> None:
    online.error = hub_error(kind)
    with pytest.raises(HubError, match=words) as caught:
        hub.resolve_folder("o/n", revision="v9")
    assert str(cache) in str(caught.value)
    assert "second line" not in str(caught.value)


def test_no_network(online: FakeHub) -> None:
    online.error = ConnectionError("Name or service not known")
    with pytest.raises(HubError, match="could not be downloaded: ConnectionError: Name or service not known") as caught:
        hub.resolve_folder("o/n")
    assert "Without a network, give the folder" in str(caught.value)


def test_ctrl_c_during_a_download_stays_ctrl_c(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def interrupted(*args: Any, **kwargs: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.resolve_folder("o/n")


def test_without_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install huggingface_hub"):
        hub.resolve_folder("o/n")


def test_imports_neither_torch_nor_the_hub_client() -> None:
    code = "import sys, quintet.hub; print([m for m in ('torch', 'huggingface_hub', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- upload -----------------------------------------------------------------------------------------------------------


class FakeApi:
    """Stands in for `huggingface_hub.HfApi`."""

    log: list[tuple[str, Any]] = []
    error: Exception | None = None

    def __init__(self, token: Any = None, library_name: str = "") -> None:
        self.log.append(("token", token))

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.log.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error
        return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.log.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.log.append(("upload_folder", {**options, "files": sorted(os.listdir(options["folder_path"]))}))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def api(cache: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    import huggingface_hub

    FakeApi.log, FakeApi.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


def test_upload(api: type[FakeApi]) -> None:
    Path("out").mkdir()
    Path("out/config.json").write_text("{}")
    url = hub.upload_folder("out", "mine", token="t", private=True, revision="dev", commit_message="m", create_pr=True)
    assert url == "https://hub/commit/1"
    assert [name for name, _ in api.log] == ["token", "create_repo", "create_branch", "upload_folder"]
    log = dict(api.log)
    assert log["token"] == "t"
    assert log["create_repo"] == {"repo_id": "mine", "private": True, "exist_ok": True}
    assert log["create_branch"] == {"repo_id": "me/mine", "branch": "dev", "exist_ok": True}
    sent = log["upload_folder"]
    assert (sent["repo_id"], sent["files"], sent["create_pr"]) == ("me/mine", ["config.json"], True)


def test_upload_refused_offline_or_by_the_hub(api: type[FakeApi], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    api.error = OSError("403 Forbidden")
    with pytest.raises(HubError, match="Uploading to 'mine' failed: OSError: 403 Forbidden. Check the name"):
        hub.upload_folder("out", "mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="'mine' cannot be uploaded: HF_HUB_OFFLINE"):
        hub.upload_folder("out", "mine")


# --- safe_join --------------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "..\\x", "x\0y", "x\n", "C:evil", "file:stream", "NUL",
    "con.txt", "/dev/zero", "COM1.safetensors", "x" * 256, "\ud800", "é" * 128, 3, None, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
def test_bad_file_names(tmp_path: Path, name: object) -> None:
    with pytest.raises(CheckpointError, match="refused: .* A plain file name inside that folder is allowed"):
        hub.safe_join(tmp_path, name)


@given(st.text(max_size=40))
def test_safe_join_never_leaves_the_folder(name: str) -> None:
    folder = Path("/some/where")
    try:
        path = hub.safe_join(folder, name)
    except CheckpointError:
        return
    assert path.parent == folder and path.name == name


def test_links(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    outside.write_text("x")
    (folder / "inside").write_text("y")
    (folder / "good").symlink_to("inside")
    (folder / "bad").symlink_to(outside)
    (folder / "worse").symlink_to("../secret")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "up").symlink_to("..")
    assert hub.safe_join(folder, "good") == folder / "good"
    assert hub.safe_join(folder, "not-there") == folder / "not-there"
    for name in ("bad", "worse", "zero", "up"):
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            hub.safe_join(folder, name)
    (tmp_path / "alias").symlink_to(folder)
    assert hub.safe_join(tmp_path / "alias", "inside").read_text() == "y"


def test_things_that_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("dir", "pipe"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            hub.safe_join(tmp_path, name)
        with pytest.raises(CheckpointError, match="not a regular file|cannot be opened"):
            hub.open_regular(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="cannot be looked at"):
        hub.safe_join(tmp_path, "loop")


def test_links_of_the_cache_are_legal_and_no_others(cache: Path) -> None:
    snapshot = put_in_cache(cache, "a/b", {"model.safetensors": "w", "part/model.safetensors": "v"})
    other = put_in_cache(cache, "a/other", {"config.json": "{}"})
    assert hub.safe_join(snapshot, "model.safetensors").read_text() == "w"
    assert hub.safe_join(snapshot / "part", "model.safetensors").read_text() == "v"
    (snapshot / "theirs").symlink_to((other / "config.json").resolve())
    (snapshot / "ref").symlink_to(cache / "models--a--b" / "refs" / "main")
    for name in ("theirs", "ref"):
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            hub.safe_join(snapshot, name)


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not JSON.* It is empty"),
        (b"{", "is not JSON"),
        (b"[1]", "holds a JSON list, and an object"),
        (b"3", "holds a JSON int"),
        (b"null", "holds a JSON NoneType"),
        (b'{"a": 1, "a": 2}', "gives the key 'a' twice"),
        (b'{"x": {"b": 1, "b": 2}}', "gives the key 'b' twice"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
    ids=range(11),
)
def test_bad_json(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        hub.read_json(path)
    with pytest.raises(CheckpointError, match=words):
        hub.read_json(path, error=CheckpointError)


def test_json_limits_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert hub.read_json(path) == {"a": 1}
    with pytest.raises(ConfigError, match="larger than 4 bytes"):
        hub.read_json(path, limit=4)
    with pytest.raises(HubError, match="no file 'x.json' in .* The folder holds: config.json"):
        hub.read_json(tmp_path / "x.json")
    with pytest.raises(HubError, match="There is no folder"):
        hub.read_json(tmp_path / "no" / "x.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        hub.read_json("/dev/zero")


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)))
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, obj: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    try:
        json.dumps(obj, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    hub.write_json_atomic(path, obj)
    assert hub.read_json(path) == obj


# --- writing ----------------------------------------------------------------------------------------------------------


def test_write_replaces_and_keeps_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    hub.write_text_atomic(path, "one\n")
    hub.write_text_atomic(path, "twoé\n")
    assert path.read_bytes() == "twoé\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    if where == "replace" and isinstance(error, KeyboardInterrupt):
        return  # see test_ctrl_c_while_renaming

    def broken(*args: Any) -> None:
        raise error

    monkeypatch.setattr(os, where, broken)
    with pytest.raises(type(error)):
        hub.write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_ctrl_c_while_renaming_waits_for_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stale").write_text("s")
    replace, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt  # before the rename
        replace(source, target)
        if len(calls) == 4:
            raise KeyboardInterrupt  # after it

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), hub.StagedFiles(tmp_path) as staged:
        for name in ("a", "b", "c", "d"):
            staged.write_text(name, name)
        staged.commit(remove=["stale"])
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"]


def test_a_folder_in_the_place_of_a_file_stops_before_any_rename(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(IsADirectoryError, match="'b' is a folder"), hub.StagedFiles(tmp_path) as staged:
        staged.write_text("a", "new")
        staged.write_text("b", "new")
        staged.commit()
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
