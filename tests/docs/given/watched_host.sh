# A host with a run that watches the sandbox agent and the VM vm-1, after an attempt of severity High.
. tests/docs/given/sandbox.sh
ip tuntap add vmtap-1 mode tap
mkdir -p /etc/ocsf-nft /var/log/ocsf-nft
cat >/etc/ocsf-nft/ocsf-nft.toml <<'.'
listen = "127.0.0.1:9464"
output = "/var/log/ocsf-nft/events.jsonl"

[[sandbox]]
name = "agent"
netns = "agent"
proxy = ["10.0.0.1:3128"]
install = true

[[sandbox]]
name = "vm-1"
profile = "tap"
device = "vmtap-1"
subnet = ["172.16.0.1/30"]
gateway_port = 3128
install = true
.
ocsf-nft run --config /etc/ocsf-nft/ocsf-nft.toml >/run/machine/run.log 2>&1 &
wait_for_line '"event":"ready"' /run/machine/run.log
ip netns exec agent curl -sS http://169.254.169.254/ || true
wait_for_line '"class_uid":2004' /var/log/ocsf-nft/events.jsonl
