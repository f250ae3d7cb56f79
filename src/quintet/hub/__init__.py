"""Where models come from: names and folders, the local cache, the network; safe reading and writing of their files.

Nothing here imports torch, and `huggingface_hub` is imported only when a download or an upload is really needed.
"""

from quintet.hub.files import (
    StagedFiles,
    open_regular,
    parse_json_object,
    read_json,
    safe_join,
    write_json_atomic,
    write_text_atomic,
)
from quintet.hub.resolve import cache_folder, is_offline, resolve_folder
from quintet.hub.upload import upload_folder

__all__ = [
    "StagedFiles",
    "cache_folder",
    "is_offline",
    "open_regular",
    "parse_json_object",
    "read_json",
    "resolve_folder",
    "safe_join",
    "upload_folder",
    "write_json_atomic",
    "write_text_atomic",
]
