"""A Flower app: Solon on Fashion-MNIST."""
