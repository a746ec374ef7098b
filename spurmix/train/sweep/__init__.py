"""Compares debiasing methods under one protocol: the same pre-trained model, budget, information and number of trials."""
