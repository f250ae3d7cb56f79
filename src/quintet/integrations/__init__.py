"""Adaptors to other people's programs, each in a module that needs the program's package."""
