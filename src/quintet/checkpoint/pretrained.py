"""`from_pretrained`, `save_pretrained` and `push_to_hub` of every model."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from quintet.checkpoint.files import INDEX_SUFFIX, SAFE_WEIGHTS, TORCH_WEIGHTS, find_weights, variant_name
from quintet.checkpoint.load import TensorSource, load_weights, open_source, source_dtype
from quintet.checkpoint.meta import SkipMetaInit, without_memory
from quintet.checkpoint.options import check_keywords, parse_device, parse_dtype
from quintet.checkpoint.rules import KeyRules, LoadReport
from quintet.checkpoint.save import save_weights
from quintet.config import PreTrainedConfig
from quintet.errors import CheckpointError, ConfigError, suggest
from quintet.hub import resolve_folder, upload_folder

__all__ = ["LoadSave"]

logger = logging.getLogger("quintet.checkpoint")
ModelT = TypeVar("ModelT", bound="LoadSave")
GENERATION_FILE = "generation_config.json"


class LoadSave(nn.Module):
    """The half of `PreTrainedModel` that reads and writes checkpoints."""

    config_class: ClassVar[type[PreTrainedConfig]] = PreTrainedConfig
    base_model_prefix: ClassVar[str] = ""
    key_rules: ClassVar[KeyRules] = KeyRules()
    # parameter -> the parameter it shares memory with when config.tie_word_embeddings is true
    _tied_weights_keys: ClassVar[Mapping[str, str]] = {}
    config: PreTrainedConfig
    name_or_path: str
    generation_config: Any

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module's own weights."""

    @classmethod
    def _parse_quantization(
        cls, quantization_config: Any, dequantize: bool | None, quantization: str | None = None
    ) -> Any:
        """Check the arguments of `from_pretrained` about the format of the weights; None where none is wanted."""
        if quantization_config is not None or dequantize or quantization is not None:
            raise ConfigError(
                f"{cls.__name__} reads plain weights only. Leave quantization, quantization_config and dequantize out."
            )
        return None

    def _fit_to_checkpoint(
        self, source: TensorSource, *, asked: Any, rules: KeyRules, dtype: torch.dtype, device: torch.device
    ) -> TensorSource:
        """Exchange modules for those that hold what the checkpoint has; return the source to load from.

        The model is on the meta device. `asked` is what `_parse_quantization` returned.
        """
        return source

    def _check_savable(self) -> None:
        """Raise a CheckpointError when no file can hold the weights."""

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        use_safetensors: bool | None = None,
        subfolder: str = "",
        variant: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        disable_mmap: bool | None = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        key_mapping: Mapping[str, str] | None = None,
        generation_config: Any = None,
        output_loading_info: bool = False,
        quantization_config: Any = None,
        dequantize: bool | None = None,
        quantization: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a folder, a name on the hub, or `storyteller`, the bundled model.

        The weights are memory-mapped: loading takes no memory of its own unless they are converted, and a page is
        read when it is first used. The model is in evaluation mode.

        Args:
            pretrained_model_name_or_path: Folder or name; None when `config` and `state_dict` are given.
            *model_args: Passed to the class.
            config: Configuration to use, or the folder or name to read it from.
            cache_dir: Hugging Face cache to look in and download to.
            ignore_mismatched_sizes: Initialise tensors of another shape in place of raising.
            force_download: Download again what is in the cache.
            local_files_only: Never use the network; so does `HF_HUB_OFFLINE=1`.
            token: For private models on the hub.
            revision: Branch, tag or commit on the hub.
            use_safetensors: False reads `pytorch_model.bin`, a pickle, which is refused otherwise.
            subfolder: Folder inside the model's folder.
            variant: Reads `model.<variant>.safetensors`.
            dtype: Type of the weights: "auto" (the default: as config.json says, else as the file), "float32",
                "bfloat16", "float16", or a torch dtype. `torch_dtype` is the older name.
            torch_dtype: See dtype.
            device_map: One device: "cpu", "cuda", "cuda:0", "auto", a torch.device or {"": device}.
            disable_mmap: True reads the files into memory at once, for file systems that map badly.
            state_dict: Weights to use in place of files; they are copied.
            key_mapping: Further (pattern: replacement) renames of the checkpoint's tensors.
            generation_config: Used in place of generation_config.json.
            output_loading_info: Return `(model, report)`, the report with the sets `missing_keys`,
                `unexpected_keys`, `mismatched_keys` and more.
            quantization_config: `Mxfp4Config()` packs the experts of a plain checkpoint while they are loaded,
                `IntegerConfig(bits=4)` its linear layers; with `dequantize=True` they unpack those of a packed one.
                Without it packed weights stay packed, and plain ones plain.
            dequantize: True unpacks whatever is packed.
            quantization: "int8", "int4" or "mxfp4", short for a configuration with the defaults; "mxfp4+int8" and
                "mxfp4+int4" pack experts and linear layers.
            **kwargs: Fields of the configuration to override (`num_labels=5`, `attn_implementation="eager"`), and
                keywords of the class.

        Raises:
            HubError: Nothing of that name here or on the hub.
            ConfigError: A keyword or a field is unknown or not allowed.
            CheckpointError: The weights are damaged, unsafe or do not fit.
        """
        device = parse_device(device_map)
        wanted = parse_dtype(dtype if dtype is not None else torch_dtype)
        if state_dict is None and pretrained_model_name_or_path is None:
            raise ConfigError(
                f"{cls.__name__}.from_pretrained(None) needs config=... and state_dict=... to build from."
            )
        where = {"revision": revision, "cache_dir": cache_dir, "token": token, "subfolder": subfolder,
                 "local_files_only": local_files_only}  # fmt: skip
        folder = None
        if state_dict is None and pretrained_model_name_or_path is not None:
            plain = TORCH_WEIGHTS if use_safetensors is False else SAFE_WEIGHTS
            files = [variant_name(name, variant) for name in (plain, plain + INDEX_SUFFIX)]
            folder = resolve_folder(pretrained_model_name_or_path, files=files, force_download=force_download, **where)  # type: ignore[arg-type]
        asked = cls._parse_quantization(quantization_config, dequantize, quantization)
        config, model_kwargs = _config_for(cls, config, pretrained_model_name_or_path, folder, where, kwargs)
        if folder is not None:
            found = find_weights(folder, variant=variant, use_safetensors=use_safetensors)
            source = open_source(found, mapped=not disable_mmap)
        else:
            source = open_source(state_dict or {})
        wanted = wanted or parse_dtype(config.dtype) or source_dtype(source) or torch.get_default_dtype()
        with without_memory():
            model = cls(config, *model_args, **model_kwargs)
        report = model._load(
            source,
            dtype=wanted,
            device=device,
            key_mapping=key_mapping,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            quantization=asked,
        )
        model.config.dtype = str(wanted).removeprefix("torch.")
        words = report.describe(cls.__name__, str(pretrained_model_name_or_path or "state_dict"))
        if words:
            logger.warning(words)
        model._set_generation_config(generation_config, folder)
        model.eval()
        return (model, report.to_dict()) if output_loading_info else model

    def _set_generation_config(self, given: Any, folder: Path | None) -> None:
        if given is not None:
            self.generation_config = given
        elif folder is not None and (folder / GENERATION_FILE).is_file():
            self.generation_config = type(self.generation_config).from_pretrained(folder)

    def _load(
        self,
        source: TensorSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        key_mapping: Mapping[str, str] | None,
        ignore_mismatched_sizes: bool,
        quantization: Any = None,
    ) -> LoadReport:
        """Take the weights of a source; what it does not have is initialised."""
        rules = self.key_rules
        if key_mapping:
            rules = dataclasses.replace(rules, rename=(*rules.rename, *key_mapping.items()))
        report = load_weights(
            self,
            self._fit_to_checkpoint(source, asked=quantization, rules=rules, dtype=dtype, device=device),
            rules=rules,
            prefix=self.base_model_prefix,
            dtype=dtype,
            device=device,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            initialise=self._initialise,
        )
        if report.untied_keys:
            # the checkpoint holds different values: a later tie_weights() must not throw one of them away
            apart = {name for pair in report.untied_keys for name in pair}
            rest = {name: other for name, other in self._tied_weights_keys.items() if name not in apart}
            object.__setattr__(self, "_tied_weights_keys", rest)
        _rebuild_buffers(self, device)
        return report

    @torch.no_grad()
    def _initialise(self) -> None:
        """Run the model's own rule; what was loaded is on the meta device for the time of this call."""
        with SkipMetaInit():
            self.apply(self._init_weights)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config.json, generation_config.json and the weights into a folder, all of them or none.

        Args:
            save_directory: Folder, made when it is not there. The one this model was loaded from is fine.
            is_main_process: False writes nothing (the other processes of a distributed run).
            state_dict: Weights to write in place of this model's.
            push_to_hub: Upload the folder afterwards.
            max_shard_size: Larger weights are split into files of at most this size ("5GB", or bytes).
            safe_serialization: Must be true: pickles are not written.
            variant: Writes `model.<variant>.safetensors`.
            token: For the upload.
            **kwargs: For the upload: repo_id, commit_message, commit_description, private, revision, create_pr.
                `save_function` is taken and without effect.

        Raises:
            CheckpointError: The path is a file, the disk is full, or a tensor cannot be saved; nothing was changed.
        """
        _check_upload_keywords(kwargs)
        if not safe_serialization:
            raise CheckpointError(
                "safe_serialization=False would write a pickle, which can run code when it is read, so it is refused. "
                "Leave it out to write safetensors, which every version of the reference since 4.30 reads."
            )
        if not is_main_process:
            return
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        self._check_savable()
        weights = self.state_dict() if state_dict is None else state_dict
        # What the model computes in; `state_dict` may hold a smaller form of it for the file.
        config.dtype = str(_weight_dtype(self.state_dict())).removeprefix("torch.")
        texts = {"config.json": config.to_json_string()}
        if hasattr(self, "generate"):
            self.generation_config.validate()
            texts[GENERATION_FILE] = self.generation_config.to_json_string()
        save_weights(
            weights,
            save_directory,
            max_shard_size=max_shard_size,
            variant=variant,
            tied=self._tied_weights_keys if config.tie_word_embeddings else None,
            texts=texts,
        )
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
            upload_folder(save_directory, repo_id, token=token, **{"commit_message": self._upload_message(), **kwargs})

    def _upload_message(self) -> str:
        return f"Upload {type(self).__name__}"

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Save into a temporary folder, upload it, and return the address of the commit.

        Args:
            repo_id: `owner/name`, created when it does not exist.
            commit_message: "Upload <class>" when left out.
            commit_description: Body of the commit.
            private: Whether a new repository is private.
            token: With the right to write; else `HF_TOKEN` or the stored one.
            revision: Branch to upload to, created when it does not exist.
            create_pr: Open a pull request in place of committing.
            max_shard_size: See save_pretrained.
            safe_serialization: See save_pretrained.
            variant: See save_pretrained.

        Raises:
            HubError: Offline, or the hub refuses.
        """
        with tempfile.TemporaryDirectory(prefix="quintet-upload-") as folder:
            self.save_pretrained(
                folder, max_shard_size=max_shard_size, safe_serialization=safe_serialization, variant=variant
            )
            return upload_folder(
                folder,
                repo_id,
                commit_message=commit_message or self._upload_message(),
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


def _weight_dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    floating = (t.dtype for t in weights.values() if isinstance(t, torch.Tensor) and t.is_floating_point())
    return next(floating, torch.get_default_dtype())


_UPLOAD_KEYWORDS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")
# keywords of the reference about its own ways of writing, which training loops pass
_SAVING_WITHOUT_EFFECT = ("save_function", "save_peft_format", "save_original_format")


def _check_upload_keywords(keywords: dict[str, Any]) -> None:
    for name in _SAVING_WITHOUT_EFFECT:
        keywords.pop(name, None)
    for name in keywords:
        if name not in _UPLOAD_KEYWORDS:
            known = [*inspect.signature(LoadSave.save_pretrained).parameters, *_UPLOAD_KEYWORDS]
            raise ConfigError(f"save_pretrained has no keyword '{name}'.{suggest(name, known)} Remove or correct it.")


def _config_for(
    cls: type[LoadSave],
    config: PreTrainedConfig | str | os.PathLike[str] | None,
    name: str | os.PathLike[str] | None,
    folder: Path | None,
    where: Mapping[str, Any],
    keywords: dict[str, Any],
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return the configuration, and those keywords that the model class itself takes."""
    own = {key for key, kind in inspect.signature(cls).parameters.items() if kind.kind != kind.VAR_KEYWORD} - {"config"}
    model_kwargs = {key: value for key, value in keywords.items() if key in own}
    rest = {key: value for key, value in keywords.items() if key not in own}
    known = {*inspect.signature(cls.from_pretrained).parameters, *own} - {"kwargs", "model_args"}
    if isinstance(config, PreTrainedConfig):
        made = copy.deepcopy(config)
        attention = rest.pop("attn_implementation", None)
        if attention is not None:
            made._attn_implementation = attention
        check_keywords(cls.__name__, rest, known)
    elif config is None and name is None:
        raise ConfigError(f"{cls.__name__}.from_pretrained(None, state_dict=...) needs config=... too.")
    else:
        place: Any = config or folder or name
        # the weights' folder has the subfolder in it already; a configuration named by itself has none
        search = {} if place is folder else {**where, "subfolder": ""} if config is not None else where
        made, unused = cls.config_class.from_pretrained(place, return_unused_kwargs=True, **search, **rest)
        check_keywords(cls.__name__, unused, {*known, *made.__dict__, *type(made).attribute_map})
    if name is not None:
        made._name_or_path = str(name)
    return made, model_kwargs


def _rebuild_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that no checkpoint holds were built without memory; their modules build them again."""
    for path, module in model.named_modules():
        held = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if not held:
            continue
        rebuild = getattr(module, "rebuild_buffers", None)
        if rebuild is None:
            raise CheckpointError(
                f"{type(module).__name__} ('{path}') has buffers that no checkpoint holds ({', '.join(held)}) and no "
                "method rebuild_buffers(device) to compute them. Add one to the class."
            )
        rebuild(device)
