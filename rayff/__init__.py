"""Forward-Forward networks, trained as pipelines of Ray actors."""
