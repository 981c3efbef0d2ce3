"""Reading torch.fx graphs: capture, rectifiers and affine operators in three dialects, edits."""

from fxreduce.graph import modules, read_pad, read_pool, read_product, readers

# Importing them registers torch's own operators.
__all__ = ["modules", "read_pad", "read_pool", "read_product", "readers"]
