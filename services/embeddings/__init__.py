"""The embeddings service: an image in, its embedding, clusters and neighbours out."""
