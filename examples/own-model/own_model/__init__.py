"""A Flower app: Solon for a model and a train function of one's own."""
