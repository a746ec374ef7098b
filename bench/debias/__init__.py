"""Comparison of debiasing methods under one protocol."""
