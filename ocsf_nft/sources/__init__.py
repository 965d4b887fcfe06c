"""Sources of kernel records: NFLOG, the kernel log, the journal and files."""
