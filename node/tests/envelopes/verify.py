"""Verifies DSSE envelopes with nothing of Rondo: ECDSA P-256 over the pre-authentication encoding.

Standard input: {"keys": [hex point, ...], "envelopes": [DSSE, ...]}. Standard output: one line an
envelope, `ok` or what is wrong.
"""

import base64
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

given = json.load(sys.stdin)
points = [bytes.fromhex(key) for key in given["keys"]]
keys = {
    hashlib.sha256(point).hexdigest(): ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    for point in points
}
for envelope in given["envelopes"]:
    kind = envelope["payloadType"].encode()
    payload = base64.b64decode(envelope["payload"], validate=True)
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (signature,) = envelope["signatures"]
    try:
        key = keys[signature["keyid"]]
        key.verify(base64.b64decode(signature["sig"], validate=True), message, ec.ECDSA(hashes.SHA256()))
        print("ok")
    except (KeyError, InvalidSignature) as problem:
        print(type(problem).__name__)
