"""Is a review good or bad? The bundled model, frozen and fine-tuned, beside a bag of words.

    python examples/movie_reviews.py --output runs/movie-reviews

2,000 reviews (Pang and Lee 2004) are split by the seed into 70% to learn from, 10% to choose by (strength of the
regularisation, epoch) and 20% held out, which nothing looks at before the end. Four ways to tell:

- a logistic regression on which words occur (the whole review, and only the part that the model reads);
- the model frozen: its states are computed once, and only the head is fitted, on the state of the last token (which is
  what GPT2ForSequenceClassification's head reads) or on the mean of all states;
- the whole model fine-tuned, with a head that begins at zero.

The model reads the last --tokens tokens of a review. The same seed, machine and number of threads give the same
numbers. Writes movie_reviews.json and, with matplotlib, movie_reviews.png.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import example_data
import numpy as np

SOURCE = "It is NLTK's movie_reviews.zip, the polarity dataset 2.0 of Pang and Lee."
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
LABELS = ("neg", "pos")


class Split(NamedTuple):
    """Numbers of the reviews of each part."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def read_reviews(file: Path, limit: int | None) -> tuple[list[str], np.ndarray]:
    """Return the texts and their labels (N,), 0 or 1; `limit` takes as many of each label as make that number."""
    texts, labels = [], []
    with zipfile.ZipFile(file) as archive:
        for label, folder in enumerate(LABELS):
            names = sorted(name for name in archive.namelist() if f"/{folder}/" in name and name.endswith(".txt"))
            for name in names[: None if limit is None else limit // 2]:
                texts.append(archive.read(name).decode("utf-8", errors="replace"))
                labels.append(label)
    if len(texts) < 20:
        raise SystemExit(f"{file} holds {len(texts)} reviews; at least 20 are needed, in the folders neg/ and pos/.")
    return texts, np.array(labels)


def split_reviews(labels: np.ndarray, seed: int) -> Split:
    """Split each label's reviews 70 : 10 : 20."""
    random = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in np.unique(labels):
        mine = random.permutation(np.flatnonzero(labels == label))
        first, second = round(0.7 * len(mine)), round(0.8 * len(mine))
        for part, numbers in zip(parts, np.split(mine, [first, second]), strict=True):
            part.append(numbers)
    return Split(*(random.permutation(np.concatenate(part)) for part in parts))


def bag_of_words(texts: list[str], train: np.ndarray) -> np.ndarray:
    """Return (N, words) ones and zeros: which of the words that two training reviews have are in each review."""
    found = [set(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())) for text in texts]
    counts: dict[str, int] = {}
    for number in train:
        for word in found[number]:
            counts[word] = counts.get(word, 0) + 1
    column = {word: place for place, word in enumerate(sorted(word for word, count in counts.items() if count > 1))}
    features = np.zeros((len(texts), len(column)), dtype=np.float32)
    for row, words in enumerate(found):
        features[row, [column[word] for word in words if word in column]] = 1
    return features


class Fitted(NamedTuple):
    """A logistic regression: weights (2, D), bias (2,), and how it does."""

    weight: Any
    bias: Any
    penalty: float
    valid: float
    test: float


def fit_logistic(features: np.ndarray, labels: np.ndarray, split: Split, *, bias: bool = True) -> Fitted:
    """Fit with each penalty on squared weights; the fit that is best on the validation part counts."""
    import torch
    from torch.nn import functional as F

    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    fits = []
    for penalty in PENALTIES:
        weight, offset = fit_one(x[split.train], y[split.train], penalty, bias)
        right = (F.linear(x, weight, offset).argmax(1) == y).float()
        fits.append(Fitted(weight, offset, penalty, float(right[split.valid].mean()), float(right[split.test].mean())))
    return max(fits, key=lambda fit: (fit.valid, fit.penalty))  # of equals the simpler


def fit_one(x: Any, y: Any, penalty: float, bias: bool) -> tuple[Any, Any]:
    """Return weights (2, D) and bias (2,) that minimise cross-entropy + penalty * squared weights, by L-BFGS."""
    import torch
    from torch.nn import functional as F

    weight = torch.zeros(2, x.shape[1], requires_grad=True)
    offset = torch.zeros(2, requires_grad=bias)
    optimizer = torch.optim.LBFGS(
        [weight, offset] if bias else [weight], max_iter=100, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, offset), y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), offset.detach()


def batch_of(rows: list[list[int]], numbers: np.ndarray, pad: int) -> dict[str, Any]:
    """Make the model's inputs of some rows, filled up at the right."""
    import torch

    longest = max(len(rows[i]) for i in numbers)
    ids = torch.tensor([rows[i] + [pad] * (longest - len(rows[i])) for i in numbers])  # (B, T)
    mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in numbers])
    return {"input_ids": ids, "use_cache": False, **({} if bool(mask.all()) else {"attention_mask": mask})}


def frozen_states(model: Any, rows: list[list[int]], pad: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the states of each row's last token and the mean over its tokens, each (N, D)."""
    import torch

    order = np.array(sorted(range(len(rows)), key=lambda i: len(rows[i])))
    last = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
    mean = np.empty_like(last)
    model.eval()
    with torch.no_grad():
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            states = model.transformer(**batch_of(rows, numbers, pad)).last_hidden_state.float().numpy()  # (B, T, D)
            for i, of_row in zip(numbers, states, strict=True):
                last[i], mean[i] = of_row[len(rows[i]) - 1], of_row[: len(rows[i])].mean(0)
            say(f"frozen states: {first + len(numbers)} of {len(order)}")
    return last, mean


def accuracy(model: Any, rows: list[list[int]], labels: np.ndarray, numbers: np.ndarray, pad: int) -> float:
    """Return the part of the reviews that the model labels rightly."""
    import torch

    model.eval()
    ordered = np.array(sorted(numbers, key=lambda i: len(rows[i])))
    right = 0
    with torch.no_grad():
        for first in range(0, len(ordered), 32):
            part = ordered[first : first + 32]
            right += int((model(**batch_of(rows, part, pad)).logits.argmax(1).numpy() == labels[part]).sum())
    return right / len(ordered)


def fine_tune(
    model: Any, rows: list[list[int]], labels: np.ndarray, split: Split, args: argparse.Namespace
) -> dict[str, Any]:
    """Train all weights; keep those of the epoch that is best on the validation part (0: before training)."""
    import torch

    pad, random = model.config.pad_token_id, np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    steps = math.ceil(len(split.train) / args.batch_size) * args.epochs
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps + 1))
    )
    losses: list[float] = []
    valid = [accuracy(model, rows, labels, split.valid, pad)]
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for epoch in range(1, args.epochs + 1):
        model.train()
        order = random.permutation(split.train)
        for first in range(0, len(order), args.batch_size):
            numbers = order[first : first + args.batch_size]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.float32):
                loss = model(**batch_of(rows, numbers, pad), labels=torch.from_numpy(labels[numbers])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            losses.append(float(loss.detach()))
            say(f"fine-tuning: epoch {epoch}, step {len(losses)} of {steps}, loss {losses[-1]:.3f}")
        valid.append(accuracy(model, rows, labels, split.valid, pad))
        if valid[-1] > max(valid[:-1]):
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return {
        "valid_by_epoch": valid,
        "epoch": valid.index(max(valid)),
        "losses": losses,
        "valid": max(valid),
        "test": accuracy(model, rows, labels, split.test, pad),
    }


def plot(results: dict[str, Any], picture: Path) -> bool:
    """Draw held-out accuracy of each way, and the course of the fine-tuning; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), dpi=120, width_ratios=(3, 2))
    ways, count = results["ways"], results["held_out"]
    values = [100 * way["test"] for way in ways]
    errors = [100 * math.sqrt(way["test"] * (1 - way["test"]) / count) for way in ways]
    colors = ["#b3541e" if "words" in way["name"] else "#12507b" for way in ways]
    bars = left.barh([way["name"] for way in ways], values, xerr=errors, color=colors, ecolor="#555555", height=0.6)
    left.bar_label(bars, labels=[f"{value:.1f}%" for value in values], label_type="center", color="white")
    left.invert_yaxis()
    left.axvline(50, ls="--", lw=1, color="#555555")
    left.set_xlim(40, 100)
    left.set_xlabel(f"held-out accuracy in % ({count} reviews; whiskers: standard error; dashes: chance)")
    losses, course = results["losses"], results["valid_by_epoch"]
    width = max(1, len(losses) // 40)
    smooth = [sum(losses[i : i + width]) / len(losses[i : i + width]) for i in range(0, len(losses), width)]
    per_epoch = len(losses) / max(1, len(course) - 1)
    right.plot([(i + 0.5) * width / per_epoch for i in range(len(smooth))], smooth, color="#9db4c8", label="loss")
    right.set_xlabel("epoch of the fine-tuning")
    right.set_ylabel("training loss (nats)")
    second = right.twinx()
    second.plot(range(len(course)), [100 * value for value in course], "o-", color="#12507b")
    second.set_ylabel("validation accuracy in %", color="#12507b")
    second.set_ylim(40, 100)
    right.set_ylim(0, 1.05 * max(smooth))
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)
    return True


def say(text: str) -> None:
    """Show where we are, where a person watches."""
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="storyteller", help="a GPT-2 (default: the bundled model)")
    parser.add_argument("--file", type=Path, help="the zip file of reviews (default: movie_reviews.zip)")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the results")
    parser.add_argument("--tokens", type=int, default=256, help="how much of a review's end the model reads")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--float32", action="store_true", help="fine-tune without bfloat16: slower on newer processors")
    parser.add_argument("--limit", type=int, help="take only this many reviews")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Try each way, print a table, write the results and the picture; return the results."""
    args = parse(argv)
    file = example_data.find("movie_reviews.zip", args.file, SOURCE)
    import torch

    from quintet import AutoTokenizer, GPT2ForSequenceClassification

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts, labels = read_reviews(file, args.limit)
    split = split_reviews(labels, args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = GPT2ForSequenceClassification.from_pretrained(
        args.model,
        num_labels=2,
        id2label=dict(enumerate(LABELS)),
        label2id={name: label for label, name in enumerate(LABELS)},
        pad_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    limit = min(args.tokens, model.config.n_positions)
    rows = [tokenizer(text.strip(), verbose=False)["input_ids"][-limit:] for text in texts]
    ways: list[dict[str, Any]] = []

    def add(name: str, began: float, valid: float, test: float, **more: Any) -> None:
        ways.append({"name": name, "valid": valid, "test": test, "seconds": time.perf_counter() - began, **more})

    for name, given in (("words, whole review", texts), (f"words, last {limit} tokens", map(tokenizer.decode, rows))):
        began = time.perf_counter()
        words = fit_logistic(bag_of_words(list(given), split.train), labels, split)
        add(name, began, words.valid, words.test, penalty=words.penalty)

    began = time.perf_counter()
    last, mean = frozen_states(model, rows, model.config.pad_token_id, args.batch_size)
    head = fit_logistic(last, labels, split, bias=False)  # the head of the class has none
    add("frozen, last state", began, head.valid, head.test, penalty=head.penalty)
    pooled = fit_logistic(mean, labels, split)
    add("frozen, mean state", began, pooled.valid, pooled.test, penalty=pooled.penalty)

    began = time.perf_counter()
    with torch.no_grad():
        model.score.weight.zero_()
    tuned = fine_tune(model, rows, labels, split, args)
    add("fine-tuned, all weights", began, tuned["valid"], tuned["test"], epoch=tuned["epoch"])
    say("")
    results = {
        "model": args.model,
        "seed": args.seed,
        "tokens": limit,
        "train": len(split.train),
        "valid": len(split.valid),
        "held_out": len(split.test),
        "threads": torch.get_num_threads(),
        "ways": ways,
        "valid_by_epoch": tuned["valid_by_epoch"],
        "losses": tuned["losses"],
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "movie_reviews.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    drawn = plot(results, args.output / "movie_reviews.png")
    print(f"{len(split.test)} held-out reviews of {len(texts)}:")
    for way in ways:
        error = math.sqrt(way["test"] * (1 - way["test"]) / len(split.test))
        print(f"  {way['name']:<26} {way['test']:.1%} (+- {error:.1%})   {way['seconds']:.0f} s")
    print(
        f"written: {args.output / 'movie_reviews.json'}"
        + (f" and {args.output / 'movie_reviews.png'}" if drawn else "")
    )
    if not drawn:
        print("no picture: it needs matplotlib, pip install 'quintet[train]'")
    return results


if __name__ == "__main__":
    main()
