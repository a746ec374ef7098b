"""Plain PyTorch implementation of every operator, the normative arithmetic. It runs if there is no compiled kernel for the device.

The functions take the arguments of the schemas in `schema.py` and assume valid types and shapes. They check indices and
class ids, because these are data. Tests compare the other backends with these functions.
"""
