"""HTTP service: returns the embedding, clusters and neighbours of an image."""
