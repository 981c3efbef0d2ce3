"""Taking a reduced model away: a file of fxreduce's own, torch.export programs, ONNX."""
