"""A real Kubernetes with real KServe on one machine, and tools to test in it: no root, no Docker, no GPU.

From the bottom up, each using only what is before it:

- ``cache``, ``obstacles``, ``progress``: what is kept, what stands in the way, what is going on.
- ``machine``: a private machine inside this one, whose process 1 is ``supervisor``, driven by ``launcher``.
- ``setup``: finds or builds the programs, fetches the demo model.
- ``cri`` and ``proxy``: what the node needs for pods and Services, as plain processes.
- ``cluster``: ``control_plane``, ``node`` and ``kserve`` are the parts; tests and the demo use
  ``base.Cluster``, of which ``local`` and ``external`` are the two kinds.
- ``testing``: streams, faults, waiting. ``demo``: the story that ``make demo`` tells.
"""
