"""Planning: finds the group size and the compression that make a round shortest."""
