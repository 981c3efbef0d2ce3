"""The command line: `fxreduce demo`, `fxreduce analyze`, `fxreduce reduce`."""
