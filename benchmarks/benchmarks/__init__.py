"""The folder above, so that a file in it also runs by its path: python benchmarks/fusion.py."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1])]
