"""What is timed and compared; `python -m benchmarks` runs all of it."""
