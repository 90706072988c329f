"""Verifies signed webhooks with the public Python libraries, as a receiver would.

Each line of standard input is a JSON object {secret, headers, body_base64, altered}; `altered` names the part that was
changed on the way (body, id, timestamp, signature or secret) and is empty where none was. A message as it was sent must
verify by every library; an altered one must be refused by every library. Headers are named in lower case. Prints the
counts as one JSON line and ends with 1 after any mistake.
"""

import base64
import hashlib
import hmac
import json
import sys

import standardwebhooks
import svix.webhooks


class Refused(Exception):
    """The signature is not the sender's."""


def library(module):
    """Verifies with `Webhook` of one of the libraries."""

    def verify(secret, headers, body):
        try:
            module.Webhook(secret).verify(body, headers)
        except module.WebhookVerificationError as error:
            raise Refused from error

    return verify


def plain(secret, headers, body):
    """Verifies X-WedSync-Signature with nothing but the standard library: the secret as shown is the key."""
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, headers["x-wedsync-signature"]):
        raise Refused


VERIFIERS = {"standardwebhooks": library(standardwebhooks), "svix": library(svix.webhooks)}


def verifiers(message):
    """Which verifiers a message is for: `plain` covers the body alone, and only where its header was sent."""
    chosen = dict(VERIFIERS)
    if "x-wedsync-signature" in message["headers"] and message["altered"] in ("", "body", "secret"):
        chosen["plain"] = plain
    return chosen


def check(message, counts):
    """Counts what each verifier says, and returns those that are mistaken."""
    mistakes = []
    body = base64.b64decode(message["body_base64"])
    for name, verify in verifiers(message).items():
        try:
            verify(message["secret"], message["headers"], body)
            outcome = "verified"
        except Refused:
            outcome = "refused"
        counts.setdefault(name, {"verified": 0, "refused": 0})[outcome] += 1
        if outcome != ("refused" if message["altered"] else "verified"):
            mistakes.append(name)
    return mistakes


def main():
    counts, mistakes = {}, 0
    for number, line in enumerate(sys.stdin, 1):
        message = json.loads(line)
        for name in check(message, counts):
            mistakes += 1
            print(f"{name}: line {number}, altered: {message['altered']}: {message['headers']}", file=sys.stderr)
    print(json.dumps({"language": "python", "mistakes": mistakes, **counts}))
    return 1 if mistakes or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
