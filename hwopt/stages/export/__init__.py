"""Write ONNX and prove that it is the network."""
