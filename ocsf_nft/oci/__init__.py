"""OCI runtime wrapper and OCI hook: fence a container before its first process starts.

Container engines start the program for each container, so it imports only the standard library and
few modules of ours.
"""
