"""What every test shares: no network, one thread, fixed seeds, the data folder, a tiny GPT-2 on disk."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

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
