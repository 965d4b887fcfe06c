# The file events.jsonl with one attempt.
ocsf-nft convert >events.jsonl <<'.'
[  100.000000] ocsf-nft:agent:egress:IN= OUT=sb0 SRC=10.200.0.2 DST=203.0.113.7 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1429 DF PROTO=TCP SPT=41254 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 UID=1000 GID=1000
.
