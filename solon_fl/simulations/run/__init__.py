"""Running one scenario: nodes, strategies, engines, and what comes of it."""
