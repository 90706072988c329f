"""Reads letters as mail programs do (Python's `email`, PyPI `icalendar`).

Usage: mail.py FILE, a letter as a JSON string a line; prints what each holds.
"""

import email
import email.policy
import json
import sys

import icalendar

POLICY = email.policy.SMTP


def addresses(header):
    return [f"{address.username}@{address.domain}" for address in header.addresses]


def entry(part):
    """The properties of a calendar, component by component."""
    calendar = icalendar.Calendar.from_ical(part.get_payload(decode=True))
    return [[component.name, *(name for name, _ in component.property_items(recursive=False))]
            for component in calendar.walk()]


def read(text):
    letter = email.message_from_bytes(text.encode("ascii"), policy=POLICY)
    parts = [part for part in letter.walk() if not part.is_multipart()]
    defects = [repr(defect) for part in letter.walk() for defect in part.defects]
    defects += [repr(defect) for value in letter.values() for defect in value.defects]
    return {
        "headers": letter.keys(),
        "from": addresses(letter["From"]),
        "to": addresses(letter["To"]),
        "subject": str(letter["Subject"]),
        "kinds": [part.get_content_type() for part in letter.walk()],
        "text": parts[0].get_content(),
        "html": parts[1].get_content(),
        "entry": entry(parts[2]) if len(parts) > 2 else [],
        "defects": defects,
        "longest": max(len(line) for line in text.split("\r\n")),
    }


for line in open(sys.argv[1], encoding="utf-8"):
    print(json.dumps(read(json.loads(line))))
