"""Training runs: settings, files, models, recipes."""
