"""Carries out the commands, which `tf_mcvae_commands` parses."""
