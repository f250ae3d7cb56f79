"""Making and calling pipelines: tasks, devices, types, tokenizers, chats, streaming, and everything that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.fused.blocks import FusedBlocks
from quintet.fused.cpu_linear import CpuConv1D
from quintet.kernels.loader import status
from quintet.pipelines import (
    TASKS,
    AggregationStrategy,
    NerPipeline,
    Pipeline,
    ReturnType,
    TextGenerationPipeline,
    TokenClassificationPipeline,
    pipeline,
)

from .conftest import TEXTS

Ours = Callable[..., Any]
Alike = Callable[..., None]
Checkpoint = Callable[..., Path]

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who lives there?"}]


# --- making -----------------------------------------------------------------------------------------------------------


def test_the_top_level_names() -> None:
    for task in TASKS.values():
        found = getattr(quintet, task.pipeline)
        assert issubclass(found, quintet.Pipeline) and found.default_task == task.name
    assert quintet.Pipeline is Pipeline and quintet.pipeline is pipeline and NerPipeline is TokenClassificationPipeline


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_found_and_shown(ours: Ours, task: str) -> None:
    pipe = ours(task)
    assert type(pipe).__name__ == TASKS[task].pipeline
    assert repr(pipe).startswith(f"{TASKS[task].pipeline}(task={task!r}, model=GPT2")
    assert pipe.device == torch.device("cpu") and pipe.dtype == pipe.torch_dtype == torch.float32
    assert not pipe.model.training


def test_aliases(checkpoint: Checkpoint) -> None:
    ner = pipeline("ner", checkpoint("gpt2", "token-classification"))
    assert ner.task == "ner" and type(ner) is TokenClassificationPipeline
    feelings = pipeline("sentiment-analysis", checkpoint("gpt2", "sequence-classification"))
    assert type(feelings).__name__ == "TextClassificationPipeline"


@pytest.mark.parametrize("head", ["causal-lm", "sequence-classification", "token-classification", "question-answering"])
def test_the_task_follows_the_model(checkpoint: Checkpoint, head: str) -> None:
    folder = checkpoint("gpt2", head)
    task = next(task.name for task in TASKS.values() if task.head == head)
    assert pipeline(model=folder).task == task
    loaded = pipeline(task, folder)
    assert pipeline(model=loaded.model, tokenizer=loaded.tokenizer).task == task
    assert pipeline(model=loaded.model).tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


def test_defaults_and_words_about_them(caplog: pytest.LogCaptureFixture) -> None:
    assert pipeline("text-generation").model.name_or_path == "storyteller"
    assert "the bundled 'storyteller' is used" in caplog.text


@pytest.mark.parametrize("device", [None, -1, 0, "cpu", torch.device("cpu")])
def test_devices(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pipeline("text-generation", "storyteller", device=device).device == torch.device("cpu")


def test_types_of_weights() -> None:
    for keywords in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"model_kwargs": {"dtype": "bfloat16"}}):
        pipe = pipeline("text-generation", "storyteller", **keywords)  # type: ignore[arg-type]
        assert pipe.dtype == torch.bfloat16
    assert pipe("Once", max_new_tokens=2)[0]["generated_text"].startswith("Once")
    assert pipeline("text-generation", "storyteller", device_map="cpu").device == torch.device("cpu")


def test_half_precision_gives_plain_scores(checkpoint: Checkpoint) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        pipe = pipeline("text-classification", checkpoint("gpt2", "sequence-classification"), dtype=dtype)
        assert sum(one["score"] for one in pipe(TEXTS[1], top_k=None)) == pytest.approx(1.0, abs=1e-6)


def test_tokenizers_by_name_pair_and_object(checkpoint: Checkpoint, vocabulary: Path) -> None:
    folder = checkpoint("gpt2", "causal-lm")
    sides = {"padding_side": "left"}
    assert pipeline("text-generation", folder, tokenizer=(str(vocabulary), sides)).tokenizer.padding_side == "left"
    own = quintet.AutoTokenizer.from_pretrained(vocabulary)
    assert pipeline("text-generation", folder, tokenizer=own).tokenizer is own
    assert pipeline("text-generation", folder, tokenizer=str(vocabulary)).tokenizer.get_vocab() == own.get_vocab()


def test_saving(ours: Ours, alike: Alike, tmp_path: Path) -> None:
    pipe = ours("text-classification")
    pipe.save_pretrained(tmp_path)
    again = pipeline("text-classification", tmp_path)
    alike(again(TEXTS), pipe(TEXTS))
    alike(again.predict(TEXTS), pipe.transform(TEXTS))


def test_a_pipeline_of_your_own(checkpoint: Checkpoint) -> None:
    class Shouting(TextGenerationPipeline):
        def postprocess(self, *given: Any, **options: Any) -> Any:
            return [record["generated_text"].upper() for record in super().postprocess(*given, **options)]

    pipe = pipeline("text-generation", "storyteller", pipeline_class=Shouting, max_new_tokens=3, do_sample=False)
    assert pipe("Once upon a time")[0].startswith("ONCE UPON A TIME")


# --- generating -------------------------------------------------------------------------------------------------------


def test_what_comes_back(ours: Ours) -> None:
    pipe = ours("text-generation", do_sample=False, max_new_tokens=4)
    full = pipe("The cat")[0]["generated_text"]
    new = pipe("The cat", return_full_text=False)[0]["generated_text"]
    assert full == "The cat" + new
    assert pipe("The cat", return_text=True)[0]["generated_text"] == full
    assert pipe("The cat", return_tensors=False)[0]["generated_text"] == full
    ids = pipe("The cat", return_tensors=True)[0]["generated_token_ids"]
    assert len(ids) == len(pipe.tokenizer("The cat")["input_ids"]) + 4
    assert pipe("The cat", return_type=ReturnType.NEW_TEXT) == pipe("The cat", return_type=1)
    assert pipe(["The cat"]) == [pipe("The cat")]


def test_words_without_spaces_inside_get_one_between() -> None:
    # The tokenizer of GPT-1 ends words with tokens, and its decoding holds the spaces between them.
    class Ends:
        def decode(self, ids: list[int], **_: Any) -> str:
            return " ".join("cat" for _ in ids)

    from quintet.tokenizers.stream import gap_after

    assert gap_after(Ends(), [3]) == " "
    assert gap_after(quintet.AutoTokenizer.from_pretrained("storyteller"), [3]) == ""


def test_gpt1_puts_a_space_between_prompt_and_text(data_dir: Path) -> None:
    tokenizer = quintet.OpenAIGPTTokenizerFast.from_pretrained(data_dir / "tokenizers" / "openai-gpt")
    config = quintet.OpenAIGPTConfig(n_embd=8, n_layer=1, n_head=2, vocab_size=len(tokenizer))
    pipe = pipeline("text-generation", quintet.OpenAIGPTLMHeadModel(config), tokenizer=tokenizer, device="cpu")
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    ids = pipe("hello world", return_tensors=True, **options)[0]["generated_token_ids"]
    assert pipe("hello world", **options)[0]["generated_text"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_defaults_of_generation(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    pipe = pipeline("text-generation", checkpoint("gpt2", "causal-lm"))
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **options: asked.append(options) or generate(**options))
    pipe("The cat")
    assert (asked[0]["do_sample"], asked[0]["temperature"]) == (True, 0.7)
    prompt = len(pipe.tokenizer("The cat")["input_ids"])
    assert asked[0]["max_new_tokens"] == 128 - prompt  # 256 would not fit
    pipe("The cat", do_sample=False, max_length=20)
    assert "temperature" not in asked[1] and asked[1]["max_new_tokens"] == 20 - prompt
    pipe("The cat", generation_config=quintet.GenerationConfig(max_new_tokens=3, temperature=0.9))
    assert asked[2]["max_new_tokens"] == 3 and "temperature" not in asked[2]
    pipe.model.generation_config.max_new_tokens = 2
    pipe("The cat")
    assert asked[3]["max_new_tokens"] == 2


def test_a_config_of_a_call_takes_the_place_of_the_pipelines_options(ours: Ours) -> None:
    pipe = ours("text-generation", do_sample=False, max_new_tokens=3, return_tensors=True)
    prompt = len(pipe.tokenizer("The cat")["input_ids"])
    config = quintet.GenerationConfig(max_length=prompt + 6, do_sample=False, pad_token_id=0)
    ids = pipe("The cat", generation_config=config)[0]["generated_token_ids"]
    assert len(ids) == prompt + 6
    assert config.max_length == prompt + 6, "the caller's config was changed"


def test_an_empty_prompt_begins_with_the_first_token(ours: Ours) -> None:
    pipe = ours("text-generation", do_sample=False, max_new_tokens=4)
    ids = pipe("", return_tensors=True)[0]["generated_token_ids"]
    assert ids[0] == pipe.tokenizer.bos_token_id and len(ids) == 5
    assert pipe("")[0]["generated_text"] == pipe.tokenizer.decode(ids, skip_special_tokens=True)
    assert pipe(["", "The cat"], batch_size=2) == [pipe(""), pipe("The cat")]


def test_a_prefix_is_read_and_not_given_back(ours: Ours) -> None:
    pipe = ours("text-generation", do_sample=False, max_new_tokens=4)
    both = pipe("The house. The cat", return_full_text=False)[0]["generated_text"]
    assert pipe("The cat", prefix="The house. ")[0]["generated_text"] == "The cat" + both
    assert pipe("The cat")[0]["generated_text"] != "The cat" + both


def test_streaming() -> None:
    pipe = pipeline("text-generation", "storyteller", do_sample=False, max_new_tokens=8)
    pieces: list[str] = []

    class Collect(quintet.TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append(text)

    streamer = Collect(pipe.tokenizer, skip_prompt=True)
    made = pipe(["Once upon a time", "The cat"], streamer=streamer, batch_size=2, return_full_text=False)
    assert "".join(pieces) == "".join(one[0]["generated_text"] for one in made)
    assert len(pieces) > 8


# --- chats ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chatting(ours: Ours) -> Any:
    pipe = ours("text-generation", do_sample=False, max_new_tokens=4)
    pipe.tokenizer.chat_template = TEMPLATE
    return pipe


def test_a_chat_gets_an_answer(chatting: Any) -> None:
    (record,) = chatting(CHAT)
    assert record["generated_text"][:2] == CHAT
    answer = record["generated_text"][2]
    assert [*answer] == ["role", "content"] and answer["role"] == "assistant"
    prompt = "system: Be kind.<|endoftext|>user: Who lives there?<|endoftext|>assistant: "
    assert chatting(prompt, return_full_text=False)[0]["generated_text"] == answer["content"]
    assert chatting(CHAT, return_full_text=False) == [{"generated_text": answer["content"]}]


def test_an_assistants_last_message_is_continued(chatting: Any) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "She does"}]
    (record,) = chatting(begun)
    assert len(record["generated_text"]) == 3
    text = record["generated_text"][-1]["content"]
    prompt = "system: Be kind.<|endoftext|>user: Who lives there?<|endoftext|>assistant: She does"
    assert text == "She does" + chatting(prompt, return_full_text=False)[0]["generated_text"]
    assert len(chatting(begun, continue_final_message=False)[0]["generated_text"]) == 4
    (other,) = chatting(CHAT, continue_final_message=True)
    assert len(other["generated_text"]) == 2
    assert other["generated_text"][-1]["content"].startswith("Who lives there?")


def test_chats_in_lists_batches_and_generators(chatting: Any, alike: Alike) -> None:
    other = [{"role": "user", "content": "The cat said nothing, but the old woman talked."}]
    alone = [chatting(CHAT), chatting(other)]
    alike(chatting([CHAT, other]), alone)
    alike(chatting([CHAT, other], batch_size=2), alone)
    alike(list(chatting(chat for chat in [CHAT, other])), alone)
    alike(chatting(message for message in CHAT), alone[0])
    alike(chatting([CHAT, "The cat"], batch_size=2), [alone[0], chatting("The cat")])


def test_tools_reach_the_template(chatting: Any) -> None:
    chatting.tokenizer.chat_template = (
        "{% for t in tools %}{{ t['function']['name'] }}{% endfor %} {{ messages[0].content }}"
    )

    def find_cat(name: str) -> str:
        """Find a cat.

        Args:
            name: Its name.
        """
        return name

    (record,) = chatting(CHAT[1:], tools=[find_cat], return_tensors=True)
    assert chatting.tokenizer.decode(record["generated_token_ids"]).startswith("find_cat Who lives there?")


# --- other tasks ------------------------------------------------------------------------------------------------------


def test_labels_of_each_item_and_of_an_unnamed_model(ours: Ours, alike: Alike, caplog: Any) -> None:
    pipe = ours("zero-shot-classification")
    items = [{"sequence": TEXTS[0], "candidate_labels": ["cat", "dog"]}, {"sequence": TEXTS[1]}]
    wanted = [pipe(TEXTS[0], ["cat", "dog"]), pipe(TEXTS[1], "house, day")]
    alike(pipe(items, candidate_labels="house, day", batch_size=3), wanted)
    assert not caplog.text
    unnamed = ours("zero-shot-classification", fields={"id2label": {0: "A", 1: "B", 2: "C"}})
    assert unnamed.entailment_id == -1 and "no label of the model begins with 'entail'" in caplog.text


def test_old_names_still_work(ours: Ours, alike: Alike) -> None:
    pipe = ours("text-classification")
    with pytest.warns(UserWarning, match="use top_k=None"):
        every = pipe(TEXTS[0], return_all_scores=True)
    assert [one["label"] for one in every[0]] == ["contradiction", "neutral", "entailment"]
    with pytest.warns(UserWarning, match="use multi_label"):
        got = ours("zero-shot-classification")(TEXTS[0], ["a", "b"], multi_class=True)
    alike(got, ours("zero-shot-classification")(TEXTS[0], ["a", "b"], multi_label=True))


def test_spans_of_tokens_that_are_given(ours: Ours, alike: Alike) -> None:
    pipe = ours("ner", ignore_labels=[], aggregation_strategy=AggregationStrategy.NONE)
    usual = pipe("The cat")
    spans = [(one["start"], one["end"]) for one in usual]
    moved = [(start + 1, end + 1) for start, end in spans]
    assert [(one["start"], one["end"]) for one in pipe("The cat", offset_mapping=moved)] == moved
    two = pipe(["The cat", "The cat"], offset_mapping=[spans, moved], batch_size=2)
    assert [(one["start"], one["end"]) for one in two[1]] == moved
    alike(two[0], usual)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_computed_by_twins(ours: Ours, task: str) -> None:
    pipe = ours(task, **({"max_new_tokens": 2} if task == "text-generation" else {}))
    item = {"question": "Who?", "context": TEXTS[1]} if task == "question-answering" else TEXTS[1]
    options = {"candidate_labels": ["cat", "dog"]} if task == "zero-shot-classification" else {}
    pipe.model.train()
    pipe(item, **options)
    assert not any(isinstance(module, CpuConv1D) for module in pipe.model.modules())
    pipe.model.eval()
    pipe(item, **options)
    blocks = pipe.model.base_model.h
    assert all(isinstance(block.mlp.c_fc, CpuConv1D) for block in blocks)
    assert isinstance(blocks, FusedBlocks) == status().native
