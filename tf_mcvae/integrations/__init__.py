"""TensorBoard, checkpoints of the reference implementation, encoders in other Keras models."""
