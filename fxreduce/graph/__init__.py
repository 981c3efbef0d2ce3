"""Reading torch.fx graphs: capture, rectifiers and affine operators in three dialects, edits."""

from fxreduce.graph import modules, readers

__all__ = ["modules", "readers"]  # importing them registers torch's own operators
