"""Attribution of refused packets to the processes that sent them; never a guess."""
