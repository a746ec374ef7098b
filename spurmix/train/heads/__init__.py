"""Heads that are fitted exactly, by logistic regression on features: DFR, DISPEL and plain logistic regression."""
