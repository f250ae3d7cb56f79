"""Inference twins of plain modules: the same parameters and names, another order of the same arithmetic."""
