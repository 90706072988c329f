"""Signs requests as Slack's own library does (PyPI `slack_sdk`), and as Resend's (PyPI `svix`).

Usage: sign.py FILE, {"by", "secret", "timestamp", "body"} a line, for Resend with "id"; prints the signature of each.
"""

import datetime
import json
import sys

import slack_sdk.signature
import svix.webhooks


def slack(said):
    verifier = slack_sdk.signature.SignatureVerifier(said["secret"])
    return verifier.generate_signature(timestamp=str(said["timestamp"]), body=said["body"])


def resend(said):
    at = datetime.datetime.fromtimestamp(said["timestamp"], datetime.timezone.utc)
    return svix.webhooks.Webhook(said["secret"]).sign(said["id"], at, said["body"])


BY = {"slack": slack, "resend": resend}

for line in open(sys.argv[1], encoding="utf-8"):
    said = json.loads(line)
    print(json.dumps(BY[said["by"]](said)))
