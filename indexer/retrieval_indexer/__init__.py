"""Bundle + items -> index generation, and the evaluation of what serves."""
