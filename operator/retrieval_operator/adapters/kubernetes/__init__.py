"""The ports over a Kubernetes API server. Only kubernetes_mode wires them."""
