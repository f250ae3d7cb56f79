"""Operations that have a native way on a CPU: schema, readable reference, fake for compilers, and the native call.

`loader.py` finds the shared object and chooses the instructions, `inference.py` says when plain PyTorch is taken; every
other file is one group of operations.
"""
