"""Running service: fences sandboxes, reads log records, and stores and delivers events.

This package exports nothing: import only the modules that you need. For example, a command that
installs a fence does not need the whole service.
"""
