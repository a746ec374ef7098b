"""`spurmix demo`: trains a biased model, debiases it, and reports accuracy per group."""
