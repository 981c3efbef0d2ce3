"""The command line: `fxreduce demo`, `analyze`, `reduce` and `schedule`."""
