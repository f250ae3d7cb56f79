"""Decoding loops: one file each, a generator of columns of tokens that talks to a `DecodeState`."""
