# A machine with a journal: a journald reads the kernel log.
mkdir -p /run/systemd/journald.conf.d /run/log/journal
cat >/run/systemd/journald.conf.d/machine.conf <<'.'
[Journal]
Storage=volatile
# journald would switch on the audit of the whole kernel.
Audit=no
.
/usr/lib/systemd/systemd-journald >/dev/null 2>&1 &
timeout 60 sh -c 'until journalctl -k -n 1 -o cat | grep -q .; do sleep 0.1; done'
