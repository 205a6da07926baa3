"""Kubernetes with KServe, local or anywhere, as one object to install into and to ask."""
