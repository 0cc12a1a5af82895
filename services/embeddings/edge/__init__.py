"""The edge of the service: who may ask, how requests and answers are written, what a browser and a gateway see."""
