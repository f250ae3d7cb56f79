"""Speed of each published vocabulary in quintet, transformers' fast classes, the tokenizers library and tiktoken.

The first two do the same work and give the same keys; the others give ids alone, and tiktoken finds no offsets. (This
script is not called tokenizers.py, because that name would hide the library from every other script of this folder.)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

PEERS = ("quintet", "transformers", "tokenizers", "tiktoken")
# Name: the folder below data/tokenizers, and the class in quintet and transformers.
VOCABULARIES = {
    "gpt2": ("gpt2", "GPT2TokenizerFast"),
    "gpt1": ("openai-gpt", "OpenAIGPTTokenizerFast"),
    "gpt-neox-20b": ("gpt-neox-20b", "GPTNeoXTokenizerFast"),
    "o200k-harmony": ("o200k_base", "PreTrainedTokenizerFast"),
}
TIKTOKEN = ("gpt2", "o200k-harmony")
O200K_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"  # never asked: a file's name
LOADS = ("load",)
CALLS = ("one text", "short texts", "batch", "decode", "decode one id")
UNITS = {"one text": "MB/s", "short texts": "calls/s", "batch": "MB/s", "decode": "MB/s", "decode one id": "calls/s"}


def gpt2_ranks(folder: Path) -> dict[bytes, int]:
    """Return the ranks of GPT-2's tokens with tiktoken's own reader."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # read the files themselves
    return data_gym_to_mergeable_bpe_ranks(str(folder / "merges.txt"), str(folder / "vocab.json"))


def import_peer(peer: str, name: str) -> Callable[[Path], Any]:
    """Import a library, which is not measured, and return what loads a vocabulary from a folder."""
    if peer == "tiktoken":
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        def load_tiktoken(folder: Path) -> Any:
            if name == "gpt2":
                special = {"<|endoftext|>": 50256}
                return tiktoken.Encoding(
                    "gpt2-file", pat_str=r50k_pat_str, mergeable_ranks=gpt2_ranks(folder), special_tokens=special
                )
            os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
            return tiktoken.get_encoding("o200k_harmony")

        return load_tiktoken
    if peer == "tokenizers":
        return plain_engine
    if peer == "transformers":
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers as module

        module.logging.set_verbosity_error()
    else:
        import quintet.tokenizers as module
    return getattr(module, VOCABULARIES[name][1]).from_pretrained


def plain_engine(folder: Path) -> Any:
    """Load with the tokenizers library alone."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    if folder.name == "openai-gpt":
        engine = Tokenizer(models.BPE.from_file(*files, unk_token="<unk>", end_of_word_suffix="</w>"))
        engine.normalizer = normalizers.BertNormalizer(lowercase=True)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.decoder = decoders.BPEDecoder(suffix="</w>")
        return engine
    engine = Tokenizer(models.BPE.from_file(*files))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return engine


class Peer:
    """One loaded vocabulary; every method returns the ids, or texts, of what it did last."""

    def __init__(self, peer: str, name: str, folder: Path, threads: int) -> None:
        self.tokenizer = import_peer(peer, name)(folder)
        self.peer, self.threads = peer, threads
        self.wraps = peer in ("quintet", "transformers")

    def one_text(self, text: str) -> list[int]:
        """Encode one text."""
        if self.wraps:
            return self.tokenizer(text, verbose=False)["input_ids"]
        ids = self.tokenizer.encode(text)
        return ids.ids if self.peer == "tokenizers" else ids

    def short_texts(self, texts: list[str]) -> list[int]:
        """Encode texts one at a time."""
        call: Any = self.tokenizer if self.wraps else self.tokenizer.encode
        for text in texts:
            result = call(text)
            ids = result["input_ids"] if self.wraps else result.ids if self.peer == "tokenizers" else result
        return ids

    def batch(self, texts: list[str]) -> list[int]:
        """Encode texts together, with the library's own threads."""
        if self.wraps:
            return self.tokenizer(texts, verbose=False)["input_ids"][-1]
        if self.peer == "tokenizers":
            return [row.ids for row in self.tokenizer.encode_batch(texts)][-1]
        return self.tokenizer.encode_batch(texts, num_threads=self.threads)[-1]

    def decode(self, ids: list[int]) -> str:
        """Decode ids together."""
        return self.tokenizer.decode(ids)

    def decode_one_id(self, ids: list[int]) -> str:
        """Decode ids one at a time."""
        decode = self.tokenizer.decode
        for index in ids:
            text = decode([index])
        return text


def child(peer: str, name: str, folder: str) -> None:
    """Load once in this process and report the seconds; the import came before."""
    load = import_peer(peer, name)
    began = time.perf_counter()
    load(Path(folder))
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def folders(data: Path, name: str, work: Path) -> tuple[Path, Path]:
    """Return the folder to load a vocabulary from, and tiktoken's; o200k's is what `quintet convert` makes."""
    source = data / "tokenizers" / VOCABULARIES[name][0]
    if name != "o200k-harmony":
        return source, source
    target, cache = work / name, work / "tiktoken"
    command = [sys.executable, "-m", "quintet", "convert", str(source), str(target), "--from", name, "--force"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=common.child_env())
    cache.mkdir(exist_ok=True)
    shutil.copy(source / "o200k_base.tiktoken", cache / hashlib.sha1(O200K_URL.encode()).hexdigest())
    return target, cache


def texts(data: Path, size: int) -> tuple[str, list[str], list[str]]:
    """Return one long text, many short ones and a batch of middling ones, of `size` characters each."""
    halves = [(data / name).read_text(encoding="utf-8") for name in ("storybook/train.txt", "tinyshakespeare.txt")]
    long = "".join(text[: size // 2] for text in halves).replace("<|endoftext|>", "")  # tiktoken refuses it in a text
    short = [line for line in long.split("\n") if line.strip()]
    return long, short[: max(1, size // 250)], [long[start : start + 2000] for start in range(0, len(long), 2000)]


def timed(work: Callable[[], Any], amount: float) -> Callable[[], float]:
    """Return what does `work` and returns its speed."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return amount / (time.perf_counter() - began)

    return run


def report(name: str, what: str, unit: str, values: dict[str, list[float]], args: Any) -> None:
    """Print one result; a ratio is above one where quintet is faster."""
    others = [peer for peer in values if peer != "quintet"]
    pairs = {peer: ("quintet", peer) if unit != "s" else (peer, "quintet") for peer in others}
    facts = {
        "vocabulary": name,
        "what": what,
        "unit": unit,
        "rounds": len(values["quintet"]),
        "speed": common.summary(values, 4),
        "ratio": {peer: round(common.ratio(values, *pairs[peer]), 3) for peer in others},
    }
    common.emit("tokenizers", facts, args.threads)


def calls(name: str, places: dict[str, Path], data: Path, wanted: list[str], args: Any) -> None:
    """Measure encoding and decoding in this process."""
    threads = args.threads or len(os.sched_getaffinity(0))
    long, short, batch = texts(data, args.characters)
    peers = {peer: Peer(peer, name, place, threads) for peer, place in places.items()}
    given = {peer: one.one_text(long) for peer, one in peers.items()}
    if any(ids != given["quintet"] for ids in given.values()):
        raise SystemExit(f"{name}: the libraries give different ids; their speeds cannot be compared.")
    ids, megabytes = given["quintet"], len(long.encode()) / 1e6
    few = ids[: max(1, args.characters // 50)]
    inputs: dict[str, tuple[Any, float]] = {
        "one text": (long, megabytes),
        "short texts": (short, len(short)),
        "batch": (batch, megabytes),
        "decode": (ids, megabytes),
        "decode one id": (few, len(few)),
    }
    for what in wanted:
        value, amount = inputs[what]
        runs = {}
        for peer, one in peers.items():
            method = getattr(one, what.replace(" ", "_"))
            runs[peer] = timed(lambda method=method, value=value: method(value), amount)
        # Decoding is quick: more rounds cost little and a single hiccup weighs less.
        rounds = args.rounds * (4 if what.startswith("decode") else 1)
        report(name, what, UNITS[what], common.alternate(runs, rounds), args)


def main() -> None:
    """Measure every vocabulary."""
    if len(sys.argv) == 5 and sys.argv[1] == "--child":
        return child(*sys.argv[2:])
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--vocabularies", default=",".join(VOCABULARIES))
    parser.add_argument("--what", default=",".join((*LOADS, *CALLS)))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--characters", type=int, default=300_000, help="of the text")
    args = parser.parse_args()
    data = common.data_folder()
    if data is None or not (data / "tokenizers").is_dir():
        print("tokenization.py needs the folder of texts and vocabularies; set QUINTET_DATA to it.", file=sys.stderr)
        return None
    os.environ["RAYON_NUM_THREADS"] = str(args.threads or len(os.sched_getaffinity(0)))
    wanted = args.what.split(",")
    with tempfile.TemporaryDirectory() as work:
        for name in args.vocabularies.split(","):
            peers = [p for p in args.peers.split(",") if p != "tiktoken" or name in TIKTOKEN]
            folder, cache = folders(data, name, Path(work))
            places = {peer: cache if peer == "tiktoken" else folder for peer in peers}
            if "load" in wanted:

                def fresh(peer: str, name: str = name, places: dict[str, Path] = places) -> float:
                    argv = [__file__, "--child", peer, name, str(places[peer])]
                    return float(common.run_child(argv, args.threads)[1]["seconds"])

                runs = {peer: lambda peer=peer: fresh(peer) for peer in places}
                report(name, "load", "s", common.alternate(runs, args.rounds), args)
            if set(wanted) & set(CALLS):
                calls(name, places, data, [what for what in CALLS if what in wanted], args)
    return None


if __name__ == "__main__":
    main()
