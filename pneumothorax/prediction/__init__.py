"""From networks to probability maps, with PyTorch or ONNX Runtime (stage 03)."""
