"""Plain PyTorch implementation of every operator, the normative arithmetic. It runs where no compiled kernel does.

The functions take the arguments of the schemas in `schema.py` and assume valid types and shapes. They check indices and
class ids, because these are data. Tests compare the other backends with these functions.
"""
