"""Replicas and workers under `tf.distribute`; outside a strategy, the identity."""
