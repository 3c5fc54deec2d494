"""Planning: which group size and compression make a round shortest."""
