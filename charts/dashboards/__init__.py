"""The chart's Grafana dashboards: `make manifests` writes charts/sheaf/files/dashboards/ from here."""
