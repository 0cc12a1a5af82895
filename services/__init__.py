"""Programs that answer over the network. They import models, images and data; never Ray, MLflow or training."""
