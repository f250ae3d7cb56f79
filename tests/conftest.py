"""What every test shares: no network, one thread, fixed seeds, the data folder, a tiny GPT-2 on disk."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

# Before any library reads them: no test may reach the network or hang on the colours and threads of a shell.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# Slow machines are not errors.
hypothesis.settings.register_profile("quintet", deadline=None)
hypothesis.settings.load_profile("quintet")

torch.set_num_threads(1)

# A background job of a script starts with Ctrl-C ignored, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

SEED_TOKENS = (
    *("<seed:bos>", "<seed:eos>", "<seed:pad>", "<seed:think>", "</seed:think>"),
    *("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>", "<seed:tool_call>", "</seed:tool_call>"),
)

TINY_TEXT = (
    "Once upon a time there was a little house at the edge of a forest. In the house lived an old woman and her cat. "
    "The cat said nothing, but the old woman talked to it all day long. One morning the cat went out and did not come "
    "back. The old woman took her lantern, and went into the forest to look for it.\n\n"
)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test starts from the same state of the global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of texts and published vocabularies, which are not part of the repository."""
    folder = Path(os.environ.get("QUINTET_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data: set QUINTET_DATA to its folder (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights and a tokenizer, saved as a published checkpoint is. Tests must not write into it."""
    from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from quintet.tokenizers.trainer import train_bpe

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    text = folder.with_suffix(".txt")
    text.write_text(TINY_TEXT * 4, encoding="utf-8")
    tokenizer = train_bpe([text], vocab_size=320, output=folder, model_max_length=128)
    end = tokenizer.token_to_id("<|endoftext|>")
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_bytes() -> Any:
    """Makes byte-level tokenizers in which every byte is a token: `make_bytes(special_tokens, **options)`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from quintet.tokenizers.engine import byte_values
    from quintet.tokenizers.fast import PreTrainedTokenizerFast

    def make(special: tuple[str, ...] = (), **options: Any) -> PreTrainedTokenizerFast:
        vocabulary = {char: index for index, char in enumerate(byte_values())}
        engine = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.decoder = decoders.ByteLevel()
        engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return PreTrainedTokenizerFast(tokenizer_object=engine, **options)

    return make


@pytest.fixture(scope="session")
def harmony_tokenizer(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """o200k_harmony, as gpt-oss uses it."""
    from quintet.tokenizers.fast import PreTrainedTokenizerFast
    from quintet.tokenizers.tiktoken import write_tokenizer

    path = data_dir / "tokenizers" / "o200k_base" / "o200k_base.tiktoken"
    if not path.exists():
        pytest.skip(f"no {path}")
    folder = tmp_path_factory.mktemp("harmony")
    write_tokenizer(path, folder, "o200k_harmony")
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def seed_tokenizer(make_bytes: Any) -> Any:
    """Bytes and Seed-OSS' special tokens."""
    return make_bytes(SEED_TOKENS, bos_token="<seed:bos>", eos_token="<seed:eos>", pad_token="<seed:pad>")


@pytest.fixture(scope="session")
def talking_gpt_oss(make_bytes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gpt-oss with a vocabulary of bytes and the tokens of harmony. Tests must not write into it."""
    from quintet.models.gpt_oss import GptOssForCausalLM, tiny

    folder = tmp_path_factory.mktemp("tiny-gpt-oss")
    special = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
    tokenizer = make_bytes(special, eos_token="<|return|>")
    tokenizer.save_pretrained(folder)
    config = tiny(vocab_size=len(tokenizer), pad_token_id=None, eos_token_id=261, max_position_embeddings=4096)
    GptOssForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def talking_seed_oss(make_bytes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Seed-OSS with a vocabulary of bytes and its tags. Tests must not write into it."""
    from quintet.models.seed_oss import SeedOssForCausalLM, tiny

    folder = tmp_path_factory.mktemp("tiny-seed-oss")
    special = ("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>")
    tokenizer = make_bytes(special, eos_token="<seed:eos>")
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": None, "bos_token_id": 256, "eos_token_id": 257}
    SeedOssForCausalLM(tiny(vocab_size=len(tokenizer), max_position_embeddings=4096, **ids)).save_pretrained(folder)
    return folder
