"""Addresses of the cluster, and the links, routes and rules that give the nodes theirs.

A node is a network namespace; the host has one bridge, to which each node has a cable. So a node's loopback, its
listening ports and what kube-proxy writes into iptables are the node's own and vanish with it. Nothing listens on an
address that the outside can reach.
"""

import ipaddress
import json
import shutil
import subprocess

CLUSTER = ipaddress.IPv4Network("10.244.0.0/16")
"""Nodes in its first /24, the pods of node n in its n-th."""
SERVICES = ipaddress.IPv4Network("10.96.0.0/16")
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

RULES = (
    ("nat", "POSTROUTING", f"-s {CLUSTER} ! -o {BRIDGE} -j MASQUERADE"),
    ("filter", "FORWARD", f"-o {BRIDGE} ! -i {BRIDGE} -j DROP"),
    ("filter", "FORWARD", f"-o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ("filter", "FORWARD", f"-i {BRIDGE} -j ACCEPT"),
)
"""Table, chain and rule on this machine: pods reach out, nobody reaches in. The last one stands on top."""
NOT_A_ROUTER = ("filter", "FORWARD", f"! -i {BRIDGE} ! -o {BRIDGE} -j DROP")
"""Where nothing was forwarded before, nothing is forwarded for others now."""


def set_up_machine(*, forwarded_before: bool) -> None:
    """Again and again without harm, as all that follows: an earlier call may have been killed half-way."""
    if BRIDGE not in links():
        run(f"ip link add {BRIDGE} type bridge")
    run(f"ip address replace {HOST}/24 dev {BRIDGE}")
    run(f"ip link set {BRIDGE} up")
    for table, chain, rule in RULES if forwarded_before else (*RULES, NOT_A_ROUTER):
        if not _succeeds(f"iptables --wait --table {table} --check {chain} {rule}"):
            run(f"iptables --wait --table {table} --insert {chain} {rule}")
    run("sysctl --quiet --write net.ipv4.ip_forward=1")


def set_up_node(node: int, *, pid: int) -> None:
    """For the namespace that process `pid` lives in."""
    inside = f"nsenter --target {pid} --net"
    if cable(node) not in links():
        run(f"ip link add {cable(node)} type veth peer name eth0 netns {pid}")
    run(f"ip link set {cable(node)} master {BRIDGE} up")
    run(f"{inside} ip link set lo up")
    run(f"{inside} ip address replace {node_address(node)}/24 dev eth0")
    run(f"{inside} ip link set eth0 up")
    run(f"{inside} ip route replace default via {HOST}")
    run(f"{inside} sysctl --quiet --write net.ipv4.ip_forward=1")


def set_up_routes(nodes: dict[int, int]) -> None:
    """From everywhere to the pods of each node, and from this machine to the services.

    `nodes` maps a node to a process in its namespace.
    """
    run(f"ip route replace {SERVICES} via {node_address(1)}")
    for node in nodes:
        run(f"ip route replace {pods_of(node)} via {node_address(node)}")
        for other, pid in nodes.items():
            if other != node:
                run(f"nsenter --target {pid} --net ip route replace {pods_of(node)} via {node_address(node)}")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True)


def _succeeds(command: str) -> bool:
    return subprocess.run(command.split(), capture_output=True).returncode == 0


def remove() -> None:
    """Takes away whatever is there of the above; a cable goes with this machine's end of it."""
    if shutil.which("ip") is None or shutil.which("iptables") is None:
        return  # none can have been made
    for table, chain, rule in (*RULES, NOT_A_ROUTER):
        while _succeeds(f"iptables --wait --table {table} --check {chain} {rule}"):
            run(f"iptables --wait --table {table} --delete {chain} {rule}")
    for link in links():
        remove_link(link)


def remove_link(link: str) -> None:
    subprocess.run(["ip", "link", "delete", link], capture_output=True)


def links() -> list[str]:
    """Of this machine, ours."""
    if shutil.which("ip") is None:
        return []
    told = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)
    return [link["ifname"] for link in told if link["ifname"] == BRIDGE or link["ifname"].startswith("sftjob-")]


def taken_ranges() -> list[str]:
    """Routes of this machine, of others than us, that lie in the cluster's addresses."""
    told = json.loads(subprocess.run(["ip", "-json", "route"], capture_output=True, text=True, check=True).stdout)
    found = []
    for route in told:
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.IPv4Network(route["dst"])
        # A wider one, as a VPN's, stays: the longer prefix wins.
        if network.subnet_of(CLUSTER) or network.subnet_of(SERVICES):
            found.append(f"{network} ({route.get('dev', 'no device')})")
    return found
