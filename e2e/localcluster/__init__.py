"""A real Kubernetes with real KServe on one machine: no root, no Docker, no GPU. It knows nothing of Sheaf.

Whoever wants a cluster imports ``localcluster.cluster``, the one interface; docs/local-cluster.md draws what
is behind it. From the bottom up, each using only what is before it:

- ``cache``, ``obstacles``, ``progress``: what is kept, what stands in the way, what is going on.
- ``machine``: a private machine inside this one, whose process 1 is ``supervisor``, driven by ``launcher``.
- ``setup``: finds or builds the programs.
- ``cri`` and ``proxy``: what a node needs for pods and Services, as plain processes.
- ``cluster``: ``control_plane``, ``node`` and ``kserve`` are the parts, ``base.Cluster`` is what they make,
  ``local`` and ``external`` are the two kinds, ``faults`` is what can happen to the local one.
"""
