"""What the API process and the engine core say to each other. A leaf: imports nothing of ours."""
