"""A Flower app that uses Solon across silos."""
