"""From a network to probability maps, with PyTorch or ONNX Runtime (stage 03)."""
