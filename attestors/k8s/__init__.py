"""The workload attestor of Kubernetes nodes: a process's container, and what the kubelet says of its pod."""
