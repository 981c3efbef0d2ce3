"""Rewrites of captured graphs, one a file; import this folder as `fxreduce.passes`."""
