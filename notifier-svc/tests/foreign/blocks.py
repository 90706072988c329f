"""Builds messages of Slack's blocks anew with PyPI `blockkit`, which knows the limits of each.

Usage: blocks.py FILE, a list of blocks as JSON a line; prints what was built of each, or what is wrong with it.
"""

import json
import sys

from blockkit import Actions, Button, Context, Header, Message, Section, Text


def text(said):
    return Text(said["text"], emoji=said["emoji"], type=said["type"])


def block(said):
    match said["type"]:
        case "header":
            return Header(text(said["text"]))
        case "section":
            shown = text(said["text"]) if "text" in said else None
            return Section(shown, fields=[text(field) for field in said.get("fields", [])])
        case "context":
            return Context([text(element) for element in said["elements"]])
        case "actions":
            return Actions([button(element) for element in said["elements"]], block_id=said["block_id"])


def button(said):
    shown = text(said["text"])
    return Button(shown, action_id=said["action_id"], value=said["value"], style=said["style"])


def built(blocks):
    try:
        return Message(blocks=[block(said) for said in blocks]).build()["blocks"]
    except Exception as fault:
        return repr(fault)


for line in open(sys.argv[1], encoding="utf-8"):
    print(json.dumps(built(json.loads(line))))
