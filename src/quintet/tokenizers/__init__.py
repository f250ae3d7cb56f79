"""Tokenizers: the call API over the `tokenizers` library. No torch is imported here."""
