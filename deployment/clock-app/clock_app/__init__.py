"""A Flower app that trains one scenario of the simulations with any strategy."""
