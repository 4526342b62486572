"""TensorRT for RTX: engines built without a GPU, as proof that a device's compiler takes a model."""
