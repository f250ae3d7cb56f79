"""What number formats cost: perplexity of the bundled model, and how far results move at real shapes.

Everything that is not packed is computed in float32, so that the difference is the format's. Of the storyteller:
perplexity of a book that it has not read, in windows of 512 tokens, its change against float32 with the standard error
of that change (token by token, on the same tokens), how far predictions move (divergence in nats), the bytes of the
files, and bits for each packed number, scales included. Of two blocks of Seed-OSS of 1.5B and of one of gpt-oss-20b (4
experts of its 32, all chosen) with random weights: the root of the squared differences of the logits as a share of the
root of their squares.

`nf4`, `fp4` and `LLM.int8()` are bitsandbytes' and are measured where it is installed. `act8` is `activations="int8"`,
by its definition: what a packed layer is given is rounded to 8 bits in groups of 32, whatever computes it; of experts
also what is between their two layers.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import common

WINDOW = 512
# Numbers that follow a normal distribution, as those of trained layers nearly do; the vocabulary is cut.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "seed-oss-1.5b": (
        "seed_oss",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_hidden_layers": 2,
            "vocab_size": 4096,
        },
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        {
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_hidden_layers": 1,
            "num_local_experts": 4,
            "num_experts_per_tok": 4,
            "vocab_size": 4096,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
    "tiny": (
        "gpt_oss",
        {
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_hidden_layers": 1,
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
            "vocab_size": 512,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
}


class Format(NamedTuple):
    """One row.

    Attributes:
        name: In the table.
        dtype: Of what is not packed.
        settings: Of `IntegerConfig`, or with `load_in_...` of `BitsAndBytesConfig`; None packs no layers.
        experts: Whether experts are packed as MXFP4.
        calibrated: Whether a text is read before.
    """

    name: str
    dtype: str = "float32"
    settings: dict[str, Any] | None = None
    experts: bool = False
    calibrated: bool = False


def integers() -> Iterator[Format]:
    """Yield the rows of whole numbers, without what is done to activations."""
    yield Format("int8, a scale per output", settings={"bits": 8})
    for group in (32, 128):
        yield Format(f"int8, groups of {group}", settings={"bits": 8, "group_size": group})
    for group in (32, 128):
        for zeros in (False, True):
            for calibrated in (False, True):
                name = f"int4, groups of {group}{', zero points' * zeros}{', calibrated' * calibrated}"
                settings = {"bits": 4, "group_size": group, "symmetric": not zeros}
                yield Format(name, settings=settings, calibrated=calibrated)
    yield Format("int8, head int8", settings={"bits": 8, "head_bits": 8})
    yield Format("int4, head int8", settings={"bits": 4, "head_bits": 8})
    yield Format("int4, head int4", settings={"bits": 4, "head_bits": 4})


def formats() -> Iterator[Format]:
    """Yield every row."""
    yield Format("fp32")
    yield Format("bf16", dtype="bfloat16")
    yield Format("fp16", dtype="float16")
    for row in integers():
        yield row
        yield with_activations(row)
    yield Format("mxfp4", experts=True)
    yield with_activations(Format("mxfp4", experts=True))
    for bits in (8, 4):
        row = Format(f"mxfp4, the rest int{bits}", settings={"bits": bits}, experts=True)
        yield row
        yield with_activations(row)
    if util.find_spec("bitsandbytes") is not None:
        for kind in ("nf4", "fp4"):
            settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
            yield Format(f"{kind} (bitsandbytes)", settings=settings)
        twice = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        yield Format("nf4, scales packed too (bitsandbytes)", settings=twice)
        yield Format("LLM.int8() (bitsandbytes)", settings={"load_in_8bit": True})


def with_activations(row: Format) -> Format:
    """Return the row with activations in 8 bits."""
    return row._replace(name=f"{row.name}, act8", settings={**(row.settings or {}), "activations": "int8"})


def packed(model: Any, row: Format, calibration: Any = None) -> Any:
    """Pack a model in place by a row's settings, and return it in its type."""
    import torch

    from quintet.quant.config import IntegerConfig, Mxfp4Config, Quantization
    from quintet.quant.foreign_config import BitsAndBytesConfig

    settings = row.settings or {}
    if any(name.startswith("load_in") for name in settings):
        model.quantize(BitsAndBytesConfig(**settings))
    elif settings or row.experts:
        linears = IntegerConfig(**settings) if "bits" in settings else None
        both = Quantization(Mxfp4Config() if row.experts else None, linears)
        model.quantize(both, calibration=calibration if row.calibrated else None)
    if "activations" in settings:
        round_inputs(model)
    model = model.to(getattr(torch, row.dtype))
    model.optimize()  # as generate does
    return model


def round_inputs(model: Any) -> None:
    """Let packed layers compute with inputs in 8 bits; what is rounded once is not changed by rounding it again."""
    from types import MethodType

    from quintet.kernels.integers import round_activations
    from quintet.layers.experts import RoutedExperts, clamped_swiglu
    from quintet.quant.packed_experts import PackedExperts, packed_linear
    from quintet.quant.packed_linear import PackedLinear

    def rounded(x: Any) -> Any:
        return round_activations(x).to(x.dtype)

    def compute(module: Any, x: Any, *parts: Any) -> Any:
        up_blocks, up_scales, up_bias, blocks, scales, bias = parts
        both = packed_linear(rounded(x), up_blocks, up_scales) + up_bias
        inner = clamped_swiglu(both, module.alpha, module.limit)
        return packed_linear(rounded(inner), blocks, scales) + bias

    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.register_forward_pre_hook(lambda _, given: (rounded(given[0]), *given[1:]))
        elif isinstance(module, PackedExperts):
            module.compute = MethodType(compute, module)
            module.forward = MethodType(RoutedExperts.forward, module)


def bits_per_number(model: Any) -> float | None:
    """Return the bits of packed weights with scales and zero points, for each number; None without any."""
    import torch

    from quintet.quant.packed_experts import PackedExperts, PackedParameter, count
    from quintet.quant.packed_linear import PackedLinear

    numbers, size = 0, 0
    for module in model.modules():
        if isinstance(module, (PackedLinear, PackedExperts)):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if isinstance(tensor, PackedParameter):
                    numbers += count(tensor)
                elif tensor.dtype != torch.int32:  # that of zero points
                    continue
                # scales are stored in the type of the model, which is 16 bits in files that are published
                size += tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
    return round(8 * size / numbers, 3) if numbers else None


def written_bytes(model: Any) -> int:
    """Return the bytes of the weight files, everything that is not packed in 16 bits."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def tokens_of(file: Path, begin: int, count: int) -> Any:
    """Return tokens of a part of a text in windows, (B, 512)."""
    import torch

    from quintet.tokenizers import AutoTokenizer

    text = file.read_text(encoding="utf-8")[begin : begin + 8 * count]
    ids = AutoTokenizer.from_pretrained("storyteller")(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = min(count, len(ids)) // WINDOW * WINDOW
    return torch.tensor(ids[:count]).view(-1, WINDOW)


def predictions(model: Any, ids: Any) -> Any:
    """Return log-probabilities of the next tokens, (B, 511, V)."""
    import torch

    with torch.inference_mode():
        return torch.cat([model(part).logits[:, :-1].float().log_softmax(-1) for part in ids.split(8)])


def perplexity(plain: Any, found: Any, ids: Any) -> dict[str, Any]:
    """Compare predictions with those in float32."""
    import torch

    wanted = ids[:, 1:, None]
    mine = found.gather(-1, wanted)[..., 0].double()  # (B, 511)
    lost = plain.gather(-1, wanted)[..., 0].double() - mine
    apart = torch.stack([(a.exp() * (a - b)).sum(-1).mean() for a, b in zip(plain, found, strict=True)]).mean()
    error = lost.std() / lost.numel() ** 0.5
    return {
        "perplexity": round(float((-mine.mean()).exp()), 4),
        "change_percent": round(100 * float(lost.mean().exp() - 1), 4),
        "change_error_percent": round(100 * float(error), 4),
        "divergence_nats": float(f"{float(apart):.3g}"),
        "tokens": mine.numel(),
    }


class Storyteller:
    """The bundled model, on a text that it has not read."""

    def __init__(self, data: Path, args: Any) -> None:
        self.ids = tokens_of(data / "storybook" / "valid.txt", 0, args.tokens)
        self.calibration = tokens_of(data / "storybook" / "train.txt", 1_000_000, args.calibration)
        self.plain = predictions(self.load(), self.ids)

    def load(self) -> Any:
        """Load it in float32."""
        from quintet.auto import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained("storyteller", dtype="float32").eval()

    def measure(self, row: Format) -> dict[str, Any] | None:
        """Return what a format costs; None where there is nothing to pack."""
        if row.experts:
            return None
        model = packed(self.load(), row, self.calibration)
        facts = perplexity(self.plain, predictions(model, self.ids), self.ids)
        return {**facts, "bits_per_number": bits_per_number(model), "file_bytes": written_bytes(model)}


class Blocks:
    """Blocks of a real shape with random weights."""

    def __init__(self, name: str, args: Any) -> None:
        import torch

        self.family, self.fields = SHAPES[name]
        made = torch.Generator().manual_seed(1)
        self.ids = torch.randint(self.fields["vocab_size"], (1, args.row), generator=made)
        self.model = self.make()
        self.plain = self.logits(self.model)

    def make(self) -> Any:
        """Return the model in float32."""
        import torch

        from quintet.auto import family_of

        record = family_of(self.family)
        torch.manual_seed(0)
        model = record.classes["causal-lm"](record.config(**self.fields)).eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if parameter.dim() > 1 and "bias" not in path and "embed" not in path:
                    parameter.normal_(std=parameter.shape[1] ** -0.5)  # (out, in), or experts (E, in, out)
                elif parameter.dim() > 1:
                    parameter.normal_(std=1.0 if "embed" in path else 0.02)
        return model

    def logits(self, model: Any) -> Any:
        """Return (1, T, V)."""
        import torch

        with torch.inference_mode():
            return model(self.ids).logits.double()

    def measure(self, row: Format) -> dict[str, Any] | None:
        """Return what a format costs; None where there is nothing to pack."""
        if row.calibrated or row.name == "fp32" or (row.experts and self.family != "gpt_oss"):
            return None  # random numbers are no text to calibrate with
        if self.fields["hidden_size"] % ((row.settings or {}).get("group_size") or 1):
            return None
        model = packed(copy.deepcopy(self.model), row)
        error = float((self.logits(model) - self.plain).norm() / self.plain.norm())
        return {"logits_error": float(f"{error:.3g}"), "bits_per_number": bits_per_number(model)}


def main() -> None:
    """Measure every format with every model."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--models", default="storyteller,seed-oss-1.5b,gpt-oss-20b", help="also: tiny")
    parser.add_argument("--formats", default="", help="only rows whose names hold this")
    parser.add_argument("--tokens", type=int, default=24 * WINDOW, help="of the storyteller's text")
    parser.add_argument("--calibration", type=int, default=32768, help="tokens to calibrate with")
    parser.add_argument("--row", type=int, default=64, help="tokens for the blocks of real shapes")
    args = parser.parse_args()
    threads = common.set_threads(args.threads)
    judges: dict[str, Storyteller | Blocks] = {}
    for name in args.models.split(","):
        data = common.data_folder()
        if name != "storyteller":
            judges[name] = Blocks(name, args)
        elif data is not None:
            judges[name] = Storyteller(data, args)
        else:
            print("skipped the storyteller: no texts. Set QUINTET_DATA to their folder.", file=sys.stderr)
    for row in formats():
        if args.formats in row.name:
            found = {name: judge.measure(row) for name, judge in judges.items()}
            models = {name: facts for name, facts in found.items() if facts is not None}
            if models:
                common.emit("quantization", {"format": row.name, "models": models}, threads)


if __name__ == "__main__":
    main()
