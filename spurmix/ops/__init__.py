"""The fused operators: schemas, plain-PyTorch reference, registration, and the validated public calls."""
