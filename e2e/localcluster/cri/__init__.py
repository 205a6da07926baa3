"""A CRI runtime whose containers are local processes in namespaces of their own; needs no root and no images.

Journey of a container: `service` (gRPC) -> `runtime` (pods and containers, their states and rules) ->
`process` (starts it, watches it) -> `container_init` (a fresh, small interpreter that builds the container's
view of the file system in `rootfs` and becomes the container's command). `network` gives each
pod its network namespace, `logs` writes what `kubectl logs` reads, `usage` measures processes and `stats`
reports that, `images` says what an image name stands for.

Everything a container needs is held by this process: when it dies, so do the containers and the pods'
networks.
"""
