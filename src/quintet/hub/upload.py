"""A folder to the hub, through `huggingface_hub`."""

from __future__ import annotations

import os

from quintet.errors import HubError
from quintet.hub.resolve import is_offline

__all__ = ["upload_folder"]


def upload_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Create the repository when it does not exist, upload every file of a folder, and return the commit's address.

    Raises:
        HubError: Offline, `huggingface_hub` is missing, or the hub refuses.
    """
    if is_offline():
        raise HubError(
            f"'{repo_id}' cannot be uploaded: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it, or keep the "
            "folder that save_pretrained writes."
        )
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise HubError("push_to_hub needs the package huggingface_hub: `pip install huggingface_hub`.") from error
    try:
        api = HfApi(token=token, library_name="quintet")
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=os.fspath(folder),
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the hub client raises its own types, its HTTP library's, OSError and ValueError
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise HubError(
            f"Uploading to '{repo_id}' failed: {type(error).__name__}: {reason}. Check the name, the network, and that "
            "the token may write (token=..., HF_TOKEN, or `hf auth login`)."
        ) from error
    return str(getattr(commit, "commit_url", commit))
