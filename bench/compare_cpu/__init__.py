"""Quire and its peers on a machine without a GPU: the same requests to each, in turns."""
