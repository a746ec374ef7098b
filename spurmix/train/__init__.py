"""Training: models, fine-tuning, evaluation."""
