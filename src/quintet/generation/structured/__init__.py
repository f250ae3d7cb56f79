"""Answers in a form: JSON by a schema, a regular expression, a choice or a grammar, held to token by token.

The engine is llguidance, which `pip install "quintet[structured]"` brings.
"""

from __future__ import annotations

from quintet.generation.structured.compile import CompiledForm, compile_form
from quintet.generation.structured.formats import Form, StructuredLimits, read_format
from quintet.generation.structured.processor import FormLogitsProcessor, form_processor

__all__ = [
    "CompiledForm",
    "Form",
    "FormLogitsProcessor",
    "StructuredLimits",
    "compile_form",
    "form_processor",
    "read_format",
]
