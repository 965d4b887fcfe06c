"""Running service: fences sandboxes, reads log records, and stores and delivers events.

Import its modules one by one: a command that installs a fence does not need the whole service.
"""
