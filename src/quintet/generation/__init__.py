"""Making text: options, sampling, stopping, streaming, and the loops behind `generate`.

Names load when they are first used: GenerationConfig and the streamers need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.generation.config import GenerationConfig
    from quintet.generation.generate import GenerationMixin
    from quintet.generation.known_tokens import KnownTokensLogitsProcessor
    from quintet.generation.loops.column import Column
    from quintet.generation.output import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
    from quintet.generation.processors import (
        EncoderNoRepeatNGramLogitsProcessor,
        EncoderRepetitionPenaltyLogitsProcessor,
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        ExponentialDecayLengthPenalty,
        ForcedBOSTokenLogitsProcessor,
        ForcedEOSTokenLogitsProcessor,
        HammingDiversityLogitsProcessor,
        InfNanRemoveLogitsProcessor,
        LogitNormalization,
        LogitsProcessor,
        LogitsProcessorList,
        LogitsWarper,
        MinLengthLogitsProcessor,
        MinNewTokensLengthLogitsProcessor,
        MinPLogitsWarper,
        NoBadWordsLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        PrefixConstrainedLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        SynthIDTextWatermarkLogitsProcessor,
        TemperatureLogitsWarper,
        TopHLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
        UnbatchedClassifierFreeGuidanceLogitsProcessor,
        WatermarkLogitsProcessor,
    )
    from quintet.generation.scoring import Score
    from quintet.generation.state import DecodeState
    from quintet.generation.stopping import (
        ConfidenceCriteria,
        EosTokenCriteria,
        MaxLengthCriteria,
        MaxTimeCriteria,
        StoppingCriteria,
        StoppingCriteriaList,
        StopStringCriteria,
    )
    from quintet.generation.streamers import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer
    from quintet.generation.watermark_config import (
        BaseWatermarkingConfig,
        SynthIDTextWatermarkingConfig,
        WatermarkingConfig,
    )
    from quintet.generation.watermarking import (
        BayesianDetectorConfig,
        BayesianDetectorModel,
        BayesianWatermarkDetectorModelOutput,
        SynthIDTextWatermarkDetector,
        WatermarkDetector,
        WatermarkDetectorOutput,
    )

__all__ = [
    "AsyncTextIteratorStreamer",
    "BaseStreamer",
    "BaseWatermarkingConfig",
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "BayesianWatermarkDetectorModelOutput",
    "Column",
    "ConfidenceCriteria",
    "DecodeState",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "EosTokenCriteria",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "GenerationConfig",
    "GenerationMixin",
    "HammingDiversityLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "KnownTokensLogitsProcessor",
    "LogitNormalization",
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "Score",
    "SequenceBiasLogitsProcessor",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
    "SynthIDTextWatermarkDetector",
    "SynthIDTextWatermarkLogitsProcessor",
    "SynthIDTextWatermarkingConfig",
    "TemperatureLogitsWarper",
    "TextIteratorStreamer",
    "TextStreamer",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "WatermarkDetector",
    "WatermarkDetectorOutput",
    "WatermarkLogitsProcessor",
    "WatermarkingConfig",
]

_HOMES = {
    "config": ("GenerationConfig",),
    "generate": ("GenerationMixin",),
    "known_tokens": ("KnownTokensLogitsProcessor",),
    "loops.column": ("Column",),
    "output": tuple(name for name in __all__ if name.endswith("Output") and "Detector" not in name),
    "processors": (
        "ExponentialDecayLengthPenalty",
        "LogitNormalization",
        *(name for name in __all__ if "Logits" in name and not name.startswith("Known")),
    ),
    "scoring": ("Score",),
    "state": ("DecodeState",),
    "stopping": tuple(name for name in __all__ if "Criteria" in name),
    "streamers": tuple(name for name in __all__ if name.endswith("Streamer")),
    "watermark_config": tuple(name for name in __all__ if name.endswith("WatermarkingConfig")),
    "watermarking": tuple(name for name in __all__ if "Detector" in name),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
