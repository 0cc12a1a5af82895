"""The page at `/`: what the encoder learned, as pictures. Static modules in `page/`, and the routes that they ask."""
