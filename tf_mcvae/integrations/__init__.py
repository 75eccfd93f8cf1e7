"""TensorBoard logs, checkpoints of the reference implementation, and encoders as Keras layers."""
