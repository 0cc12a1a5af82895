"""Evaluations of frozen features: one pass over the images, then solvers of scikit-learn and torch on arrays."""
