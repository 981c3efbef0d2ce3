"""Graphs as torch.compile hands them over: parameters are inputs, and many models share a graph."""
