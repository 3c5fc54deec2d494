"""A Flower app: Solon across silos."""
