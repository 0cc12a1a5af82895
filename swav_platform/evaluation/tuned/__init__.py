"""Evaluations that train on images with labels: linear layers on augmented crops, fine-tuning, few labels."""
