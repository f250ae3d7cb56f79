"""Making and calling pipelines: tasks, devices, types, tokenizers, chats, streaming, and everything that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.errors import ConfigError, GenerationError, HubError, InputError, QuintetError, TokenizerError
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

    from quintet.pipelines.generating import gap_after

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


def test_a_chat_needs_a_template(ours: Ours) -> None:
    with pytest.raises(QuintetError, match="chat template"):
        ours("text-generation")(CHAT)


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


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"task": "text-genration"}, ConfigError, "unknown task 'text-genration'. Did you mean 'text-generation'"),
        ({"task": "fill-mask"}, ConfigError, "The tasks are text-generation, "),
        ({"task": 3}, ConfigError, "unknown task 3"),
        ({}, ConfigError, "needs a task or a model"),
        ({"task": "ner"}, ConfigError, "there is no default model for token-classification"),
        ({"task": "text-generation", "tokenizer": "storyteller"}, ConfigError, "a tokenizer is given and no model"),
        ({"task": "text-classification", "model": "storyteller"}, ConfigError, "no weights for score.weight"),
        ({"task": "text-generation", "model": "/nowhere"}, HubError, "/nowhere"),
        ({"task": "text-generation", "device": "gpu"}, ConfigError, "device is 'gpu'"),
        ({"task": "text-generation", "device": "cpu", "device_map": "cpu"}, ConfigError, "device and device_map"),
        ({"task": "text-generation", "dtype": "int7"}, ConfigError, "int7"),
        (
            {"task": "text-generation", "dtype": "float32", "model_kwargs": {"dtype": "float16"}},
            ConfigError,
            "dtype is given twice",
        ),
        ({"task": "text-generation", "batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"task": "text-generation", "image_processor": "x"}, ConfigError, "image_processor is for images"),
        ({"task": "text-generation", "trust_remote_code": True}, ConfigError, "never runs code from a checkpoint"),
    ],
    ids=str,
)
def test_pipelines_that_are_refused(keywords: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pipeline(**keywords)


def test_models_without_the_right_head(checkpoint: Checkpoint, vocabulary: Path) -> None:
    model = quintet.AutoModel.from_pretrained(checkpoint("gpt2", "causal-lm"))
    for task in ("text-generation", "text-classification", "question-answering"):
        with pytest.raises(ConfigError, match=rf"GPT2Model cannot do {task}: it has no .* head. Use GPT2"):
            pipeline(task, model, tokenizer=str(vocabulary))
    with pytest.raises(ConfigError, match="the family 'openai-gpt' has no token-classification model"):
        pipeline("ner", checkpoint("openai-gpt", "causal-lm"))
    with pytest.raises(ConfigError, match="OpenAIGPTLMHeadModel cannot do ner|cannot do token-classification"):
        other = quintet.AutoModelForCausalLM.from_pretrained(checkpoint("openai-gpt", "causal-lm"))
        pipeline("ner", other, tokenizer=str(vocabulary))


def test_no_tokenizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = quintet.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2", "causal-lm"))
    model.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer found for .*Pass tokenizer="):
        pipeline("text-generation", tmp_path)
    made = quintet.GPT2LMHeadModel(quintet.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(TokenizerError, match="was made in memory"):
        pipeline("text-generation", made)
    with pytest.raises(ConfigError, match="TextGenerationPipeline has no tokenizer"):
        TextGenerationPipeline(model=made)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "empty list"),
        (None, "None"),
        (b"bytes", "bytes"),
        ([None], "item 0 .*None|item 0 .*an item is"),
        ([b"bytes"], "item 0 .*bytes"),
        (3, "of type int"),
    ],
    ids=str,
)
def test_inputs_that_are_refused(ours: Ours, task: str, bad: Any, words: str) -> None:
    options = {"candidate_labels": ["a"]} if task == "zero-shot-classification" else {}
    if task == "question-answering" and isinstance(bad, list) and len(bad) == 1:
        bad = bad * 2  # a list of one is one question
    with pytest.raises(InputError, match=words):
        ours(task)(bad, **options)


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction", "text-generation"])
def test_contexts_longer_than_the_model(ours: Ours, task: str) -> None:
    pipe = ours(task)
    with pytest.raises(
        InputError, match="the text has .* tokens, and the model has 128 positions. Shorten it, or pass"
    ):
        pipe("The old woman " * 100)
    options: dict[str, Any] = {"truncation": True}
    if task == "text-generation":
        options = {"handle_long_generation": "hole", "max_new_tokens": 20}
    assert pipe("The old woman " * 100, **options)


def test_a_text_that_is_cut_is_told(ours: Ours, caplog: pytest.LogCaptureFixture) -> None:
    pipe = ours("ner")
    text = "The old woman " * 100
    assert pipe(text, ignore_labels=[])[-1]["end"] < len(text)
    assert "longer than the 128 tokens that fit" in caplog.text
    caplog.clear()
    found = pipe(text, ignore_labels=[], stride=10, aggregation_strategy="simple")
    assert found[-1]["end"] >= len(text) - 1 and not caplog.text


@pytest.mark.parametrize(
    ("task", "options", "error", "words"),
    [
        ("text-generation", {"max_new_tokns": 3}, GenerationError, "Did you mean 'max_new_tokens'"),
        ("text-generation", {"handle_long_generation": "cut"}, ConfigError, "must be 'hole' or None"),
        ("text-generation", {"return_full_text": True, "return_tensors": True}, ConfigError, "both given"),
        ("text-generation", {"return_full_text": True, "return_text": True}, ConfigError, "both given"),
        ("text-generation", {"return_type": 7}, ConfigError, "return_type is 7"),
        ("text-generation", {"max_new_tokens": 128, "handle_long_generation": "hole"}, InputError, "finds no room"),
        ("text-classification", {"top_k": 0}, ConfigError, "top_k is 0"),
        ("text-classification", {"function_to_apply": "sofmax"}, ConfigError, "Did you mean 'softmax'"),
        ("text-classification", {"truncaton": True}, TokenizerError, "Did you mean 'truncation'"),
        ("text-classification", {"return_tensors": "pt"}, TokenizerError, "set by the pipeline"),
        ("ner", {"aggregation_strategy": "frist"}, ConfigError, "Did you mean 'first'"),
        ("ner", {"stride": 128}, ConfigError, "must be less than the tokens that fit"),
        ("ner", {"stride": 5, "aggregation_strategy": "none"}, ConfigError, "must not be 'none'"),
        ("ner", {"ignore_labels": "O"}, ConfigError, "must be a list"),
        ("ner", {"strides": 5}, ConfigError, "Did you mean 'stride'"),
        ("ner", {"is_split_into_words": True}, InputError, "takes a list of words"),
        ("feature-extraction", {"truncate": True}, ConfigError, "Did you mean 'truncation'"),
        ("feature-extraction", {"truncation": True, "tokenize_kwargs": {"truncation": True}}, ConfigError, "twice"),
        ("zero-shot-classification", {}, InputError, "there are no candidate_labels"),
        ("zero-shot-classification", {"candidate_labels": ""}, InputError, "there are no candidate_labels"),
        ("zero-shot-classification", {"candidate_labels": [3]}, ConfigError, "must be a list of texts"),
        (
            "zero-shot-classification",
            {"candidate_labels": ["a"], "hypothesis_template": "It is so."},
            ConfigError,
            "must hold {} where the label",
        ),
        (
            "zero-shot-classification",
            {"candidate_labels": ["a"], "hypothesis_template": "{x} {"},
            ConfigError,
            "cannot be filled in",
        ),
    ],
    ids=str,
)
def test_options_that_are_refused(
    ours: Ours, task: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ours(task)("The cat", **options)


def test_items_of_a_wrong_form(ours: Ours) -> None:
    with pytest.raises(InputError, match=r"item 0 .*for a pair a dict"):
        ours("text-classification")([["a", "b"]])
    with pytest.raises(InputError, match="must have 'text'"):
        ours("text-classification")({"txt": "a"})
    with pytest.raises(InputError, match="must be a text, or a chat"):
        ours("text-generation")({"text": "a"})
    with pytest.raises(InputError, match="Words need is_split_into_words=True"):
        ours("ner")([["a", "b"]])
    with pytest.raises(InputError, match="must have 'sequence'"):
        ours("zero-shot-classification")({"txt": "a"}, candidate_labels="a")
    with pytest.raises(InputError, match="2 entries for 1 texts"):
        ours("ner")(["a"], offset_mapping=[[(0, 1)], [(0, 1)]])


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
