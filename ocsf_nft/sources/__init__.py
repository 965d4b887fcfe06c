"""Sources of packet log records: NFLOG, the kernel log, the systemd journal and log files."""
