"""The loop over transitions, which gives log weights; bounds and losses from log weights."""
