"""One extension of fxreduce of each kind, written with its public names alone."""
