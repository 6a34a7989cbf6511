"""A real single-node Kubernetes on plain Linux, for tests: `python -m native_cluster up`.

etcd, the five programs of Kubernetes and CoreDNS are built from Go modules by name; containerd, runc and the CNI
plugins are the distribution's. Nothing but the kernel is shared with the host:

- One *node* process (node.py) is the init of its own PID, mount, network, IPC and UTS namespaces, and starts every
  program in them. Whoever kills it ends every program and every pod, and with them go their mounts, bridge and iptables
  rules: the kernel cleans up, in whatever state a start was cut.
- What is left on the host is one state directory, one veth pair, one cgroup per hierarchy and some kernel settings that
  the kubelet changes; `down` undoes them, and needs none of our processes to be alive for it.
- The host reaches pods and Services over the veth pair, as a machine next to the node would.
"""
