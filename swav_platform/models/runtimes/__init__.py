"""Ways to run an encoder. All map images float32 [n, 3, H, W] to features float32 [n, D]; `choose.open_runtime` opens one by name."""
