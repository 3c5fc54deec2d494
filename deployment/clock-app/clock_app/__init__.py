"""A Flower app: one scenario of the simulations, with any strategy."""
