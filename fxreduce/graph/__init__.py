"""Reading torch.fx graphs: capture, rectifiers and affine operators in three dialects, edits."""

from fxreduce.graph import modules, read_pool, readers

__all__ = ["modules", "read_pool", "readers"]  # importing them registers torch's own operators
