"""Take a float ONNX model that has no torch source."""
