"""The fused operators: schemas, reference, gradients, registration, backends and public functions."""
