"""The models that answer: where they come from, how a version is checked, and how it replaces the one before."""
