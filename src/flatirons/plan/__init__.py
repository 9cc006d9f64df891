"""Looking ahead with a model: search for games."""
