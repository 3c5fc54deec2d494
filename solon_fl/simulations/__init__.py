"""Built-in simulation: data, models, attacks, the in-process engine and the command line."""
