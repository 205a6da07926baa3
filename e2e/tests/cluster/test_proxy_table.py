"""The proxy's table: Services and EndpointSlices in, addresses and endpoints out."""

import pytest
from localcluster.proxy.table import Address, build_table


def service(name="web", ip="10.96.0.10", ports=({"port": 80},), namespace="ns", **spec):
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": list(ports), **spec},
    }


def endpoint(ip, **conditions):
    return {"addresses": [ip], "conditions": conditions}


def slice_of(name="web", endpoints=(), ports=({"port": 8080},), namespace="ns", family="IPv4"):
    return {
        "metadata": {
            "name": f"{name}-x",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family,
        "ports": list(ports),
        "endpoints": list(endpoints),
    }


WEB = Address("10.96.0.10", 80)


def backends(*ips, port=8080):
    return tuple(Address(ip, port) for ip in ips)


def test_endpoints_of_all_slices_sorted_and_once():
    slices = [
        slice_of(endpoints=[endpoint("10.0.0.2"), endpoint("10.0.0.1")]),
        slice_of(endpoints=[endpoint("10.0.0.1")]),
    ]
    assert build_table([service()], slices) == {WEB: backends("10.0.0.1", "10.0.0.2")}


def test_a_service_without_endpoints_is_listed_with_none():
    assert build_table([service()], []) == {WEB: ()}


def test_other_services_and_namespaces_do_not_mix():
    slices = [
        slice_of(endpoints=[endpoint("10.0.0.1")], namespace="other"),
        slice_of("api", [endpoint("10.0.0.2")]),
    ]
    table = build_table([service(), service("api", "10.96.0.11")], slices)
    assert table == {WEB: (), Address("10.96.0.11", 80): backends("10.0.0.2")}


@pytest.mark.parametrize(
    "left_out",
    [
        service(ip="None", clusterIPs=["None"]),
        service(type="ExternalName", externalName="example.com"),
        service(ip=None, clusterIPs=None),
        service(ip="fd00::1"),
        service(ports=[{"port": 53, "protocol": "UDP"}]),
    ],
    ids=["headless", "external name", "no address yet", "IPv6", "UDP"],
)
def test_what_is_not_served(left_out):
    assert build_table([left_out], [slice_of(endpoints=[endpoint("10.0.0.1")])]) == {}


def test_the_ipv4_address_of_a_dual_stack_service():
    both = service(clusterIPs=["fd00::1", "10.96.0.10"], ip="fd00::1")
    slices = [
        slice_of(endpoints=[endpoint("fd00::2")], family="IPv6"),
        slice_of(endpoints=[endpoint("10.0.0.1")]),
    ]
    assert build_table([both], slices) == {WEB: backends("10.0.0.1")}


def test_ports_are_joined_by_name():
    ports = [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "metrics", "port": 9090}]
    slices = [
        slice_of(endpoints=[endpoint("10.0.0.1")], ports=[{"name": "http", "port": 8000}]),
        slice_of(  # an older pod gives the same name another number
            endpoints=[endpoint("10.0.0.2")],
            ports=[
                {"name": "http", "port": 8001},
                {"name": "metrics", "port": 9000},
                {"name": "http", "port": None},
            ],
        ),
    ]
    assert build_table([service(ports=ports)], slices) == {
        WEB: (Address("10.0.0.1", 8000), Address("10.0.0.2", 8001)),
        Address("10.96.0.10", 9090): (Address("10.0.0.2", 9000),),
    }


NOT_READY = endpoint("10.0.0.3", ready=False, serving=False, terminating=False)
LEAVING = endpoint("10.0.0.4", ready=False, serving=True, terminating=True)
GONE = endpoint("10.0.0.5", ready=False, serving=False, terminating=True)


@pytest.mark.parametrize(
    ("endpoints", "used"),
    [
        ([endpoint("10.0.0.1", ready=True), NOT_READY, LEAVING, GONE], ["10.0.0.1"]),
        ([NOT_READY, LEAVING, GONE], ["10.0.0.4"]),
        ([NOT_READY, GONE], []),
        # publishNotReadyAddresses: the slice says ready whatever the pod says
        ([endpoint("10.0.0.6", ready=True, serving=False, terminating=True)], ["10.0.0.6"]),
        ([{"addresses": ["10.0.0.7"]}], ["10.0.0.7"]),  # unknown counts as ready
    ],
)
def test_ready_endpoints_or_else_those_that_still_serve(endpoints, used):
    assert build_table([service()], [slice_of(endpoints=endpoints)]) == {WEB: backends(*used)}


def test_empty_slices_as_the_controller_writes_them():
    empty = slice_of()
    empty["endpoints"] = empty["ports"] = None
    assert build_table([service()], [empty]) == {WEB: ()}
