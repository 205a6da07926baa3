"""A userspace Service proxy: what kube-proxy does, without nftables, for TCP over IPv4.

`watch` follows Services and EndpointSlices, `table` (pure) turns them into ClusterIP:port -> endpoints,
`addresses` puts the ClusterIPs on `lo`, `relay` listens there and carries the bytes. While the API server
is away the last known state is served.
"""
