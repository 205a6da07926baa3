"""``make demo``: the whole story on one machine, told step by step with times."""
