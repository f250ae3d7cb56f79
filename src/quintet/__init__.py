"""Five families of open GPT models in PyTorch.

`import quintet` loads none of them: a name below is imported from its home when it is first used.
"""

from __future__ import annotations

from importlib import import_module

from quintet import paths

TYPE_CHECKING = False  # importing it from `typing` would take most of the time of `import quintet`
if TYPE_CHECKING:
    from typing import Any

    from quintet.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoModelWithLMHead,
        register_family,
    )
    from quintet.cache import (
        Cache,
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        EncoderDecoderCache,
        Int8Cache,
        OffloadedCache,
        QuantizedCache,
        StaticCache,
        StaticLayer,
        StaticSlidingWindowLayer,
    )
    from quintet.config import PreTrainedConfig, PretrainedConfig
    from quintet.errors import (
        CheckpointError,
        ConfigError,
        GenerationError,
        HubError,
        InputError,
        QuintetError,
        TokenizerError,
        TrainingError,
        UsageError,
    )
    from quintet.generation import (
        AsyncTextIteratorStreamer,
        BayesianDetectorConfig,
        BayesianDetectorModel,
        EncoderNoRepeatNGramLogitsProcessor,
        EncoderRepetitionPenaltyLogitsProcessor,
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        ExponentialDecayLengthPenalty,
        ForcedBOSTokenLogitsProcessor,
        ForcedEOSTokenLogitsProcessor,
        GenerationConfig,
        GenerationMixin,
        HammingDiversityLogitsProcessor,
        InfNanRemoveLogitsProcessor,
        LogitNormalization,
        LogitsProcessor,
        LogitsProcessorList,
        LogitsWarper,
        MaxLengthCriteria,
        MaxTimeCriteria,
        MinLengthLogitsProcessor,
        MinNewTokensLengthLogitsProcessor,
        MinPLogitsWarper,
        NoBadWordsLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        PrefixConstrainedLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        StoppingCriteria,
        StoppingCriteriaList,
        StopStringCriteria,
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        SynthIDTextWatermarkDetector,
        SynthIDTextWatermarkingConfig,
        SynthIDTextWatermarkLogitsProcessor,
        TemperatureLogitsWarper,
        TextIteratorStreamer,
        TextStreamer,
        TopHLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
        UnbatchedClassifierFreeGuidanceLogitsProcessor,
        WatermarkDetector,
        WatermarkingConfig,
        WatermarkLogitsProcessor,
    )
    from quintet.layers.conv1d import Conv1D
    from quintet.modeling import PreTrainedModel
    from quintet.models.gpt2 import (
        GPT2Config,
        GPT2DoubleHeadsModel,
        GPT2ForQuestionAnswering,
        GPT2ForSequenceClassification,
        GPT2ForTokenClassification,
        GPT2LMHeadModel,
        GPT2Model,
        GPT2PreTrainedModel,
    )
    from quintet.models.gpt_neox import (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GPTNeoXForQuestionAnswering,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
        GPTNeoXModel,
        GPTNeoXPreTrainedModel,
    )
    from quintet.models.gpt_oss import (
        GptOssConfig,
        GptOssForCausalLM,
        GptOssForSequenceClassification,
        GptOssForTokenClassification,
        GptOssModel,
        GptOssPreTrainedModel,
    )
    from quintet.models.openai_gpt import (
        OpenAIGPTConfig,
        OpenAIGPTDoubleHeadsModel,
        OpenAIGPTForSequenceClassification,
        OpenAIGPTLMHeadModel,
        OpenAIGPTModel,
        OpenAIGPTPreTrainedModel,
    )
    from quintet.models.seed_oss import (
        SeedOssConfig,
        SeedOssForCausalLM,
        SeedOssForQuestionAnswering,
        SeedOssForSequenceClassification,
        SeedOssForTokenClassification,
        SeedOssModel,
        SeedOssPreTrainedModel,
    )
    from quintet.outputs import ModelOutput
    from quintet.pipelines import (
        FeatureExtractionPipeline,
        Pipeline,
        QuestionAnsweringPipeline,
        TextClassificationPipeline,
        TextGenerationPipeline,
        TokenClassificationPipeline,
        ZeroShotClassificationPipeline,
        pipeline,
    )
    from quintet.quant.config import IntegerConfig, Mxfp4Config
    from quintet.quant.foreign_config import BitsAndBytesConfig, TorchAoConfig
    from quintet.tokenizers import (
        AddedToken,
        AutoTokenizer,
        BatchEncoding,
        GPT2Tokenizer,
        GPT2TokenizerFast,
        GPTNeoXTokenizerFast,
        OpenAIGPTTokenizer,
        OpenAIGPTTokenizerFast,
        PreTrainedTokenizer,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )
    from quintet.training.arguments import TrainingArguments
    from quintet.training.run import train

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "AddedToken",
    "AsyncTextIteratorStreamer",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelWithLMHead",
    "AutoTokenizer",
    "BatchEncoding",
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "BitsAndBytesConfig",
    "Cache",
    "CheckpointError",
    "ConfigError",
    "Conv1D",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "EncoderDecoderCache",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "ExponentialDecayLengthPenalty",
    "FeatureExtractionPipeline",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "GPT2Config",
    "GPT2DoubleHeadsModel",
    "GPT2ForQuestionAnswering",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPT2PreTrainedModel",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "GPTNeoXConfig",
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "GPTNeoXPreTrainedModel",
    "GPTNeoXTokenizerFast",
    "GenerationConfig",
    "GenerationError",
    "GenerationMixin",
    "GptOssConfig",
    "GptOssForCausalLM",
    "GptOssForSequenceClassification",
    "GptOssForTokenClassification",
    "GptOssModel",
    "GptOssPreTrainedModel",
    "HammingDiversityLogitsProcessor",
    "HubError",
    "InfNanRemoveLogitsProcessor",
    "InputError",
    "Int8Cache",
    "IntegerConfig",
    "LogitNormalization",
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "ModelOutput",
    "Mxfp4Config",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "OffloadedCache",
    "OpenAIGPTConfig",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "OpenAIGPTPreTrainedModel",
    "OpenAIGPTTokenizer",
    "OpenAIGPTTokenizerFast",
    "Pipeline",
    "PreTrainedConfig",
    "PreTrainedModel",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "PrefixConstrainedLogitsProcessor",
    "PretrainedConfig",
    "QuantizedCache",
    "QuestionAnsweringPipeline",
    "QuintetError",
    "RepetitionPenaltyLogitsProcessor",
    "SeedOssConfig",
    "SeedOssForCausalLM",
    "SeedOssForQuestionAnswering",
    "SeedOssForSequenceClassification",
    "SeedOssForTokenClassification",
    "SeedOssModel",
    "SeedOssPreTrainedModel",
    "SequenceBiasLogitsProcessor",
    "StaticCache",
    "StaticLayer",
    "StaticSlidingWindowLayer",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
    "SynthIDTextWatermarkDetector",
    "SynthIDTextWatermarkLogitsProcessor",
    "SynthIDTextWatermarkingConfig",
    "TemperatureLogitsWarper",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TextIteratorStreamer",
    "TextStreamer",
    "TokenClassificationPipeline",
    "TokenizerError",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TorchAoConfig",
    "TrainingArguments",
    "TrainingError",
    "TypicalLogitsWarper",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "UsageError",
    "WatermarkDetector",
    "WatermarkLogitsProcessor",
    "WatermarkingConfig",
    "ZeroShotClassificationPipeline",
    "pipeline",
    "register_family",
    "train",
]

# Where each of these names lives; a test compares this table, `__all__` and the imports above.
_HOMES = {
    "auto": (
        "AutoConfig AutoModel AutoModelForCausalLM AutoModelForQuestionAnswering "
        "AutoModelForSequenceClassification AutoModelForTokenClassification AutoModelWithLMHead "
        "register_family"
    ),
    "cache": (
        "Cache DynamicCache DynamicLayer DynamicSlidingWindowLayer EncoderDecoderCache Int8Cache OffloadedCache "
        "QuantizedCache StaticCache StaticLayer StaticSlidingWindowLayer"
    ),
    "config": "PreTrainedConfig PretrainedConfig",
    "errors": (
        "CheckpointError ConfigError GenerationError HubError InputError QuintetError TokenizerError "
        "TrainingError UsageError"
    ),
    "generation": (
        "AsyncTextIteratorStreamer BayesianDetectorConfig BayesianDetectorModel "
        "EncoderNoRepeatNGramLogitsProcessor EncoderRepetitionPenaltyLogitsProcessor EpsilonLogitsWarper "
        "EtaLogitsWarper ExponentialDecayLengthPenalty ForcedBOSTokenLogitsProcessor "
        "ForcedEOSTokenLogitsProcessor GenerationConfig GenerationMixin HammingDiversityLogitsProcessor "
        "InfNanRemoveLogitsProcessor LogitNormalization LogitsProcessor LogitsProcessorList LogitsWarper "
        "MaxLengthCriteria MaxTimeCriteria MinLengthLogitsProcessor MinNewTokensLengthLogitsProcessor "
        "MinPLogitsWarper NoBadWordsLogitsProcessor NoRepeatNGramLogitsProcessor "
        "PrefixConstrainedLogitsProcessor RepetitionPenaltyLogitsProcessor SequenceBiasLogitsProcessor "
        "StopStringCriteria StoppingCriteria StoppingCriteriaList SuppressTokensAtBeginLogitsProcessor "
        "SuppressTokensLogitsProcessor SynthIDTextWatermarkDetector SynthIDTextWatermarkLogitsProcessor "
        "SynthIDTextWatermarkingConfig TemperatureLogitsWarper TextIteratorStreamer TextStreamer "
        "TopHLogitsWarper TopKLogitsWarper TopPLogitsWarper TypicalLogitsWarper "
        "UnbatchedClassifierFreeGuidanceLogitsProcessor WatermarkDetector WatermarkLogitsProcessor "
        "WatermarkingConfig"
    ),
    "layers.conv1d": "Conv1D",
    "modeling": "PreTrainedModel",
    "models.gpt2": (
        "GPT2Config GPT2DoubleHeadsModel GPT2ForQuestionAnswering GPT2ForSequenceClassification "
        "GPT2ForTokenClassification GPT2LMHeadModel GPT2Model GPT2PreTrainedModel"
    ),
    "models.gpt_neox": (
        "GPTNeoXConfig GPTNeoXForCausalLM GPTNeoXForQuestionAnswering GPTNeoXForSequenceClassification "
        "GPTNeoXForTokenClassification GPTNeoXModel GPTNeoXPreTrainedModel"
    ),
    "models.openai_gpt": (
        "OpenAIGPTConfig OpenAIGPTDoubleHeadsModel OpenAIGPTForSequenceClassification OpenAIGPTLMHeadModel "
        "OpenAIGPTModel OpenAIGPTPreTrainedModel"
    ),
    "models.seed_oss": (
        "SeedOssConfig SeedOssForCausalLM SeedOssForQuestionAnswering "
        "SeedOssForSequenceClassification SeedOssForTokenClassification SeedOssModel SeedOssPreTrainedModel"
    ),
    "models.gpt_oss": (
        "GptOssConfig GptOssForCausalLM GptOssForSequenceClassification "
        "GptOssForTokenClassification GptOssModel GptOssPreTrainedModel"
    ),
    "outputs": "ModelOutput",
    "pipelines": (
        "FeatureExtractionPipeline Pipeline QuestionAnsweringPipeline TextClassificationPipeline "
        "TextGenerationPipeline TokenClassificationPipeline ZeroShotClassificationPipeline pipeline"
    ),
    "quant.config": "IntegerConfig Mxfp4Config",
    "quant.foreign_config": "BitsAndBytesConfig TorchAoConfig",
    "tokenizers": (
        "AddedToken AutoTokenizer BatchEncoding GPT2Tokenizer GPT2TokenizerFast GPTNeoXTokenizerFast "
        "OpenAIGPTTokenizer OpenAIGPTTokenizerFast PreTrainedTokenizer PreTrainedTokenizerBase PreTrainedTokenizerFast"
    ),
    "training.arguments": "TrainingArguments",
    "training.run": "train",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

# Modules that `import quintet` alone makes reachable, `quintet.modeling_outputs.X` for one.
_MODULES = {path.partition(".")[0] for path in [*_HOMES, *paths.ALIASES, "family", "hub", "models", "training"]}

paths.install()


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    from quintet.errors import suggest

    hint = "" if name.startswith("_") else suggest(name, _HOME_OF)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES})
