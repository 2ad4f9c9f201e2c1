"""The command line: ``autopar plan|show|train|models``."""

from autopar.cli.app import main

__all__ = ["main"]
