"""A Flower app that uses Solon with its own model and train function."""
