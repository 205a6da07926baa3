"""What has to be there first: Go, the programs built with it, the CRI messages, the demo model."""
