"""The commands: their flags and settings, answered without TensorFlow.

Importing `tf_mcvae` imports TensorFlow, which takes seconds. `--help` and mistakes on the command
line must not wait for it, so the parsing lives in this package next to it.
"""
