"""The quantization scheme of a device applied to a torch module: one path for PTQ and QAT."""
