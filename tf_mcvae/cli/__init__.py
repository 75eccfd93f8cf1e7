"""Carries out what the commands of `tf_mcvae_commands` have parsed."""
