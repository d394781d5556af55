"""Other people's networks: recognising their weights, and making facelit checkpoints of them."""
