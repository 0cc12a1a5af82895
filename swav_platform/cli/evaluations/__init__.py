"""The commands below `swav evaluate`."""
