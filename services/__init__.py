"""Network services. They import models, images and data, but not Ray, MLflow or training."""
