"""Bits per byte of the held-out book: the bundled model beside xz and beside a Kneser-Ney 5-gram model.

Bits per byte is the negative log probability of all tokens in nats / ln 2 / UTF-8 bytes of the text. Every token
counts, the first too. The n-gram model reads the same training text through the same tokenizer.
"""

from __future__ import annotations

import lzma
import math
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
from kneser_ney import KneserNey


def xz_bytes(data: bytes) -> int:
    """Return the size of the data after `xz -9e`."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def model_nats(model: Any, tokens: np.ndarray, window: int, stride: int, rows: int = 4) -> float:
    """Return -log of the probability of a text (N,): windows that move by `stride`, each predicting its last `stride`.

    So every token but those of the first window has at least `window` - `stride` tokens before it. The text begins
    after the model's bos token.
    """
    import torch

    ids = torch.from_numpy(np.concatenate([[model.config.bos_token_id], tokens]).astype(np.int64))
    spans = [(0, min(window, len(ids)), 1)]  # start, end, first token predicted
    while spans[-1][1] < len(ids):
        done = spans[-1][1]
        end = min(done + stride, len(ids))
        spans.append((end - window, end, done))
    total = 0.0
    with torch.inference_mode():
        # All spans have one length: only a text shorter than the window has a shorter one, and then it is the only one.
        for first in range(0, len(spans), rows):
            part = spans[first : first + rows]
            batch = torch.stack([ids[start:end] for start, end, _ in part])  # (rows, window)
            logs = torch.log_softmax(model(input_ids=batch, use_cache=False).logits[:, :-1].float(), dim=-1)
            picked = logs.gather(2, batch[:, 1:, None])[..., 0].double()  # (rows, window - 1)
            for row, (start, _, new) in zip(picked, part, strict=True):
                total -= float(row[new - start - 1 :].sum())
    return total


def bits_per_byte(nats: float, size: int) -> float:
    """Convert."""
    return nats / math.log(2) / size


def main() -> None:
    """Measure those asked for."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--model", default="storyteller", help="a folder, or storyteller")
    parser.add_argument("--tokenizer", default=None, help="a folder (default: the model's)")
    parser.add_argument("--train", type=Path, default=None, help="default: storybook/train.txt of QUINTET_DATA")
    parser.add_argument("--valid", type=Path, default=None)
    parser.add_argument("--only", default="xz,kneser-ney,model")
    parser.add_argument("--stride", type=int, default=None, help="default: half the model's window")
    args = parser.parse_args()
    if args.train is None or args.valid is None:
        data = common.data_folder()
        if data is None:
            print("skipped: no texts. Set QUINTET_DATA to their folder, or give --train and --valid.", file=sys.stderr)
            return
        args.train, args.valid = args.train or data / "storybook/train.txt", args.valid or data / "storybook/valid.txt"

    train, valid = args.train.read_text(encoding="utf-8"), args.valid.read_text(encoding="utf-8")
    size = len(valid.encode())
    wanted = args.only.split(",")
    facts = {"text": args.valid.name, "bytes": size}
    if "xz" in wanted:
        alone, before = xz_bytes(valid.encode()), xz_bytes(train.encode())
        after = xz_bytes((train + valid).encode())
        common.emit("baselines", {**facts, "what": "xz -9e, this text alone", "bpb": round(8 * alone / size, 4)})
        bits = round(8 * (after - before) / size, 4)
        common.emit("baselines", {**facts, "what": "xz -9e, after the training text", "bpb": bits})
    if not {"kneser-ney", "model"} & set(wanted):
        return

    from quintet.tokenizers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    valid_ids = np.array(tokenizer(valid, add_special_tokens=False)["input_ids"])
    if "kneser-ney" in wanted:
        train_ids = np.array(tokenizer(train, add_special_tokens=False)["input_ids"])
        ngrams = KneserNey(train_ids, len(tokenizer))
        bits = round(bits_per_byte(ngrams.nats(valid_ids), size), 4)
        what = "modified Kneser-Ney 5-gram, same tokens"
        common.emit("baselines", {**facts, "what": what, "bpb": bits, "tokens": len(valid_ids)})
    if "model" in wanted:
        from quintet.auto import AutoModelForCausalLM

        threads = common.set_threads(args.threads)
        model = AutoModelForCausalLM.from_pretrained(args.model).float().eval()
        window = model.config.n_positions
        stride = args.stride or window // 2
        bits = round(bits_per_byte(model_nats(model, valid_ids, window, stride), size), 4)
        what = f"{Path(args.model).name}, windows of {window} moving by {stride}"
        common.emit("baselines", {**facts, "what": what, "bpb": bits, "tokens": len(valid_ids)}, threads)


if __name__ == "__main__":
    main()
