"""A real Kubernetes with real KServe on one machine, and tools to test in it: no root, no Docker, no GPU.

From the bottom up: ``binaries`` finds or builds the programs; ``namespace`` makes a private machine, in which
``supervisor`` is process 1 and which ``launcher`` drives from outside; ``control_plane``, ``node`` (with its
``cri`` and ``proxy``) and ``kserve`` start the parts; tests and the demo use ``cluster``, of which ``local``
and ``external`` are the two kinds; ``faults`` breaks things.
"""
