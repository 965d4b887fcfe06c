# A sandbox of the name agent, as the tutorial makes it, without a fence.
ip netns add agent
ip link add sb-host type veth peer name sb0 netns agent
ip address add 10.200.0.1/24 dev sb-host
ip link set sb-host up
ip -n agent address add 10.200.0.2/24 dev sb0
ip -n agent link set lo up
ip -n agent link set sb0 up
ip -n agent route add default via 10.200.0.1
