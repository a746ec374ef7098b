"""What to draw: groups, mixing weights, policies, audit and draw tables. Needs NumPy only (SciPy for Beta)."""
