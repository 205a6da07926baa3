"""Sheaf on a cluster, end to end: what the product's tests and the demo share.

``checkout`` opens a cluster that runs the programs of this checkout, ``release`` installs the operator with
Helm, ``operator_faults`` takes it away, ``demo_model`` fetches the model, ``deployed`` looks at one
LLMDeployment, ``admission`` is a webhook, ``streams`` sends requests, ``demo`` is the story that
``make demo`` tells, ``up`` is ``make cluster``. The cluster itself is the package ``localcluster``.
"""
