"""A client of the router and of health, in another language than ours.

`events` publishes events, consumes them in a group of its own, drops its stream in the middle, comes back, and checks
that it misses none and gets none again that it acknowledged; what was handed out before must be flagged `redelivered`.
`health` asks grpc.health.v1 for the whole and for every service by name, or prints the changes as they come.

Prints its result as one JSON line; ends with 1 if anything is not as promised.
"""

import argparse
import json
import queue
import sys
import time
import uuid

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from generated import Generated

CALL_SECONDS = 30
STREAM_SECONDS = 120
CREDIT = 50
KEYS = 7
TYPE = "foreign.noted"


class Router:
    """The router's services over one connection, with an API key."""

    def __init__(self, generated, address, token):
        self.event = generated.messages("router/v1/event")
        self.events = generated.messages("router/v1/event_service")
        self.consumers = generated.messages("router/v1/consumer_service")
        self.channel = grpc.insecure_channel(address)
        self.event_service = generated.stubs("router/v1/event_service").EventServiceStub(self.channel)
        self.consumer_service = generated.stubs("router/v1/consumer_service").ConsumerServiceStub(self.channel)
        self.credentials = [("authorization", f"Bearer {token}")]

    def call(self, method, request):
        return method(request, metadata=self.credentials, timeout=CALL_SECONDS)

    def head(self):
        return self.call(self.event_service.GetHead, self.events.GetHeadRequest()).head

    def new_event(self, number):
        content = self.event.Content(data=json.dumps({"number": number, "note": "größer 🎉"}).encode())
        key = f"wedding-{number % KEYS}"
        name = f"foreign-{uuid.uuid4()}"
        return self.event.Event(id=name, type=TYPE, source="foreign", ordering_key=key, content=content)

    def acknowledged_up_to(self, group, priority):
        groups = self.call(self.consumer_service.ListGroups, self.consumers.ListGroupsRequest()).groups
        cursors = [cursor for found in groups if found.name == group for cursor in found.cursors]
        return max((cursor.sequence for cursor in cursors if cursor.priority == priority), default=0)


class Member:
    """One stream of a consumer group."""

    def __init__(self, router, group, position):
        self.messages = router.consumers
        self.requests = queue.SimpleQueue()
        credit = self.messages.Credit(events=CREDIT)
        start = self.messages.StartConsuming(group=group, types=[TYPE], credit=credit)
        getattr(start, "from").CopyFrom(position)
        self.requests.put(self.messages.ConsumeRequest(start=start))
        requests = iter(self.requests.get, None)
        self.stream = router.consumer_service.Consume(requests, metadata=router.credentials, timeout=STREAM_SECONDS)

    def __iter__(self):
        for answer in self.stream:
            yield from answer.events

    def acknowledge(self, consumed):
        sequences = [consumed.event.position.sequence]
        self.requests.put(self.messages.ConsumeRequest(acknowledge=self.messages.Acknowledge(sequences=sequences)))
        credit = self.messages.Credit(events=1, bytes=consumed.credit_bytes)
        self.requests.put(self.messages.ConsumeRequest(credit=credit))

    def drop(self):
        """Ends the stream without a word, as a crash would."""
        self.stream.cancel()
        self.requests.put(None)


def publish(router, events):
    """Publishes in each of the three ways, and gives the receipts."""
    third = len(events) // 3
    messages, service = router.events, router.event_service
    receipts = [router.call(service.Publish, messages.PublishRequest(event=event)).receipt for event in events[:third]]
    batch = router.call(service.PublishBatch, messages.PublishBatchRequest(events=events[third : 2 * third]))
    receipts += [result.receipt for result in batch.results]
    last = enumerate(events[2 * third :])
    requests = (messages.PublishStreamRequest(correlation_id=number, event=event) for number, event in last)
    receipts += [answer.result.receipt for answer in router.call(service.PublishStream, requests)]
    return receipts


def wait_until_acknowledged(router, group, event):
    """An acknowledgement counts once the router has it; what is still under way when a stream breaks may be lost."""
    until, sequence = time.monotonic() + CALL_SECONDS, event.position.sequence
    while (cursor := router.acknowledged_up_to(group, event.priority)) < sequence:
        if time.monotonic() > until:
            raise SystemExit(f"acknowledged up to {sequence}, but the group stands at {cursor}")
        time.sleep(0.02)


def first_half(router, group, position, ids):
    """Handles half of the events, takes a few more that it leaves unacknowledged, and drops the stream."""
    member, acknowledged, handed_out = Member(router, group, position), [], []
    for consumed in member:
        handed_out.append(consumed.event.id)
        if len(acknowledged) < len(ids) // 2:
            member.acknowledge(consumed)
            acknowledged.append(consumed.event.id)
            last = consumed.event
        elif len(handed_out) >= len(ids) // 2 + 5:
            break
    wait_until_acknowledged(router, group, last)
    member.drop()
    return acknowledged, handed_out


def second_half(router, group, position, ids, acknowledged):
    """Handles what is left: (what arrived, which of it was flagged)."""
    member, arrived, flagged = Member(router, group, position), [], set()
    left = set(ids) - set(acknowledged)
    for consumed in member:
        arrived.append(consumed.event.id)
        if consumed.redelivered:
            flagged.add(consumed.event.id)
        member.acknowledge(consumed)
        left.discard(consumed.event.id)
        if not left:
            break
    wait_until_acknowledged(router, group, consumed.event)
    member.drop()
    return arrived, flagged


def out_of_order(ids, received):
    """The keys whose events did not come in the order in which they were published."""
    number = {event: n for n, event in enumerate(ids)}
    by_key = [[number[event] for event in received if number[event] % KEYS == key] for key in range(KEYS)]
    return [key for key, numbers in enumerate(by_key) if numbers != sorted(numbers)]


def events(arguments):
    generated = Generated()
    router = Router(generated, arguments.address, arguments.token)
    group, position = f"foreign-{uuid.uuid4().hex[:12]}", router.head()
    sent = [router.new_event(number) for number in range(arguments.events)]
    ids = [event.id for event in sent]
    receipts = publish(router, sent)
    again = router.call(router.event_service.Publish, router.events.PublishRequest(event=sent[0])).receipt

    acknowledged, handed_out = first_half(router, group, position, ids)
    router.channel.close()
    router = Router(generated, arguments.address, arguments.token)
    arrived, flagged = second_half(router, group, position, ids, acknowledged)

    sequences = [receipt.position.sequence for receipt in receipts]
    problems = {
        "not stored once and in order": [r.id for r, s in zip(receipts, ids, strict=True) if r.id != s or r.duplicate],
        "positions out of order": [] if sequences == sorted(set(sequences)) else sequences,
        "duplicate not recognised": [] if again.duplicate and again.position == receipts[0].position else [again.id],
        "missed": sorted(set(ids) - set(handed_out) - set(arrived)),
        "acknowledged and repeated": sorted(set(acknowledged) & set(arrived)),
        "twice on one stream": sorted({i for i in arrived if arrived.count(i) > 1}),
        "handed out before and not flagged": sorted((set(handed_out) & set(arrived)) - flagged),
        "out of order": out_of_order(ids, [*acknowledged, *arrived]),
    }
    problems = {what: which for what, which in problems.items() if which}
    again = len(set(handed_out) & set(arrived))
    print(json.dumps({"published": len(receipts), "handed_out_again": again, "problems": problems}))
    return 1 if problems else 0


def name(status):
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def health(arguments):
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(arguments.address))
    if arguments.watch:
        return watch(stub)
    statuses = {}
    for service in ["", *Generated().services(arguments.package)]:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            statuses[service] = name(stub.Check(request, timeout=CALL_SECONDS).status)
        except grpc.RpcError as error:
            statuses[service] = error.code().name
    print(json.dumps(statuses))
    return 0 if len(statuses) > 1 and set(statuses.values()) == {"SERVING"} else 1


def watch(stub):
    """One line per change of the whole, and at the end how the stream ended."""
    try:
        for answer in stub.Watch(health_pb2.HealthCheckRequest(service="")):
            print(name(answer.status), flush=True)
        print("ENDED", flush=True)
    except grpc.RpcError as error:
        print(f"ENDED {error.code().name}", flush=True)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("events")
    command.add_argument("--address", required=True, help="host:port of the router")
    command.add_argument("--token", required=True, help="API key with the scopes publish and consume")
    command.add_argument("--events", type=int, default=200, help="how many (at least 12)")
    command.set_defaults(run=events)
    command = commands.add_parser("health")
    command.add_argument("--address", required=True, help="host:port of any service")
    command.add_argument("--package", default="router", help="router, notifier or vendorsync")
    command.add_argument("--watch", action="store_true", help="print SERVING and NOT_SERVING as they come")
    command.set_defaults(run=health)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
