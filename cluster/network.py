"""Addresses of the cluster, and the links, routes and rules that give the nodes theirs.

A node is a network namespace; the host has one bridge, to which each node has a cable. So a node's loopback, its
listening ports and what kube-proxy writes into iptables are the node's own and vanish with it. Nothing listens on an
address that the outside can reach.
"""

import ipaddress
import json
import subprocess

CLUSTER = ipaddress.ip_network("10.244.0.0/16")
"""Nodes in its first /24, the pods of node n in its n-th."""
SERVICES = ipaddress.ip_network("10.96.0.0/16")
KUBERNETES_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
HOST = "10.244.0.1"
BRIDGE = "sftjob0"


def node_address(node: int) -> str:
    return f"10.244.0.{node + 1}"


def pods_of(node: int) -> str:
    return f"10.244.{node}.0/24"


def cable(node: int) -> str:
    return f"sftjob-{node}"


API_SERVER = f"https://{node_address(1)}:6443"
REGISTRY = f"{node_address(1)}:5000"

_OUTBOUND = ("nat", "POSTROUTING", f"-s {CLUSTER} ! -o {BRIDGE} -j MASQUERADE")
_FORWARD = (
    ("filter", "FORWARD", f"-o {BRIDGE} ! -i {BRIDGE} -j DROP"),
    ("filter", "FORWARD", f"-o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ("filter", "FORWARD", f"-i {BRIDGE} -j ACCEPT"),
)
RULES = (_OUTBOUND, *_FORWARD)
"""Table, chain and rule on the host: pods reach out, nobody reaches in. The last one stands on top."""


def bridge_commands() -> list[str]:
    return [
        f"ip link add {BRIDGE} type bridge",
        f"ip address add {HOST}/24 dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
        "sysctl --quiet --write net.ipv4.ip_forward=1",
        *(f"iptables --wait --table {table} --insert {chain} {rule}" for table, chain, rule in RULES),
    ]


def node_commands(node: int, *, pid: int) -> list[str]:
    """For the namespace that process `pid` lives in."""
    inside = f"nsenter --target {pid} --net"
    return [
        f"ip link add {cable(node)} type veth peer name eth0 netns {pid}",
        f"ip link set {cable(node)} master {BRIDGE} up",
        f"{inside} ip link set lo up",
        f"{inside} ip address add {node_address(node)}/24 dev eth0",
        f"{inside} ip link set eth0 up",
        f"{inside} ip route add default via {HOST}",
        f"{inside} sysctl --quiet --write net.ipv4.ip_forward=1",
    ]


def pod_route_commands(nodes: dict[int, int]) -> list[str]:
    """From everywhere to the pods of each node, and from the host to the services.

    `nodes` maps a node to a process in its namespace.
    """
    commands = [f"ip route replace {SERVICES} via {node_address(1)}"]
    commands += [f"ip route replace {pods_of(node)} via {node_address(node)}" for node in nodes]
    for node, pid in nodes.items():
        commands += [
            f"nsenter --target {pid} --net ip route replace {pods_of(other)} via {node_address(other)}"
            for other in nodes
            if other != node
        ]
    return commands


def run(commands: list[str]) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def remove() -> None:
    """Takes away whatever is there of the above on the host; a cable goes with its bridge's end."""
    for table, chain, rule in RULES:
        command = f"iptables --wait --table {table} --delete {chain} {rule}".split()
        while subprocess.run(command, capture_output=True).returncode == 0:
            pass
    for link in links():
        remove_link(link)


def remove_link(link: str) -> None:
    subprocess.run(["ip", "link", "delete", link], capture_output=True)


def links() -> list[str]:
    """Of the host, ours."""
    told = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)
    return [link["ifname"] for link in told if link["ifname"] == BRIDGE or link["ifname"].startswith("sftjob-")]


def taken_ranges() -> list[str]:
    """Routes of this machine, of others than us, that lie in the cluster's addresses."""
    told = json.loads(subprocess.run(["ip", "-json", "route"], capture_output=True, text=True, check=True).stdout)
    found = []
    for route in told:
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.ip_network(route["dst"])
        if network.overlaps(CLUSTER) or network.overlaps(SERVICES):
            found.append(f"{network} ({route.get('dev', 'no device')})")
    return found
