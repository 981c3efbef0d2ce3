"""The algebra of affine operators: tensors in, tensors out, no graph.

An operator is an affine map of channels with a spatial kernel. `compose` and `add` build the one
operator that equals two, or say why there is none.
"""
