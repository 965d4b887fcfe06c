"""Attribution of refused packets to the processes that sent them.

A process is named as the sender only if there is evidence: the kernel saw the process send the
packet, or the process has the socket that sent the packet.
"""
