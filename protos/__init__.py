"""The contracts between Quire's processes and the code generated from them.

The `.proto` files live in `protos/quire/v1`; their generated modules lie beside them and are
imported as `protos.quire.v1.worker_pb2`. `python -m protos.generate` writes them anew.
"""
